"""The SQL statements for the administration of the SQLite store; see ``_sql``.

Those that list tasks are made for each filter, of the parts that it needs; values are bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.administration import KEPT_FAILURES, TaskFilter, WorkerReport
from sitq.backends._rows import select_list
from sitq.backends._task_filters import conditions
from sitq.backends.sqlite._rows import INFO_COLUMNS, dump_rows, to_micros

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["IdList", "PendingList"]

# -- lists of tasks --------------------------------------------------------------------------

# The lists by id of the tasks of some statuses: where a task is looked for.
_IN_STATUS: Final = {
    **{
        status: (
            "tasks INDEXED BY tasks_unsuccessful",
            f"finished_at IS NOT NULL AND tasks.value IS NULL AND status = '{status}'",
        )
        for status in ("failed", "cancelled", "expired")
    },
    "success": ("tasks", "status = 'success'"),
}


class IdList:
    """The statements that list tasks by id, the newest first, for one filter.

    Args:
        where: the filter; its status is not one of pending tasks.
    """

    def __init__(self, where: TaskFilter) -> None:
        clauses, self._values = _clauses(where)
        source, status = _IN_STATUS.get(where.status or "", ("tasks", "true"))
        scanned = "true" if where.status == "success" else status
        if where.ids is not None:
            source = "json_each(:ids) AS wanted CROSS JOIN tasks ON tasks.id = wanted.value"
            self._values["ids"] = dump_rows(where.ids)
        elif where.status == "in_progress" or where.worker is not None:
            source = "leases CROSS JOIN tasks ON tasks.seq = leases.seq"
        if where.status == "in_progress":
            scanned = status = "status = 'in_progress'"
        if where.worker is not None:
            clauses.append("leases.worker = :worker")
            self._values["worker"] = where.worker
        joined = "" if "leases" in source else "LEFT JOIN leases ON leases.seq = tasks.seq"
        every = " AND ".join([status, *clauses])
        within = "tasks.id < :before AND tasks.id >= :floor"
        self.floor: Final = f"""
            SELECT tasks.id, enqueued_at FROM {source} WHERE {scanned} AND tasks.id < :before
            ORDER BY tasks.id DESC LIMIT 1 OFFSET :bound"""
        self.page: Final = f"""
            SELECT {INFO_COLUMNS} FROM {source} {joined} WHERE {every} AND {within}
            ORDER BY tasks.id DESC LIMIT :limit"""
        self.count: Final = f"""
            SELECT count(*) FROM (
                SELECT 1 FROM {source} {joined} WHERE {every} AND {within} LIMIT :limit)"""

    def values(self, before: str, **more: Any) -> dict[str, Any]:
        """Return the values of a statement."""
        return {**self._values, "before": before, **more}


class PendingList:
    """The statements that list the pending tasks of one queue and one priority, for one filter.

    Args:
        where: the filter; its status is one of pending tasks.
        now: the moment in microseconds.
    """

    def __init__(self, where: TaskFilter, now: int) -> None:
        clauses, self._values = _clauses(where)
        if where.ids is not None:
            clauses.append("tasks.id IN (SELECT value FROM json_each(:ids))")
            self._values["ids"] = dump_rows(where.ids)
        if where.worker is not None:
            clauses.append("false")
        if where.status == "retrying":
            clauses.append("attempts > 0")
        self.is_selective: Final = bool(clauses)
        due = {"due": "AND eta <= :now", "scheduled": "AND eta > :now"}.get(where.status or "", "")
        self._values["now"] = now
        self._level: Final = f"""
            FROM tasks INDEXED BY tasks_due
            WHERE status = 'pending' AND tasks.queue = :level_queue
              AND tasks.priority = :level_priority AND (eta, tasks.seq) > (:eta, :seq) {due}"""
        every = "".join(f" AND {clause}" for clause in clauses)
        within = f"{every} AND (eta, tasks.seq) <= (:last_eta, :last_seq)"
        self.floor: Final = f"""
            SELECT eta, seq {self._level} ORDER BY eta, tasks.seq LIMIT 1 OFFSET :bound"""
        self.scanned: Final = f"""
            SELECT count(*) FROM (SELECT 1 {self._level} LIMIT :bound)"""
        level = self._level.replace("tasks_due", "tasks_due LEFT JOIN leases ON false", 1)
        self.page: Final = f"""
            SELECT {INFO_COLUMNS}, tasks.seq {level} {within}
            ORDER BY eta, tasks.seq LIMIT :limit"""
        self.count: Final = f"""
            SELECT count(*) FROM (SELECT 1 {self._level} {within} LIMIT :limit)"""

    def values(self, level: tuple[str, int], after: tuple[int, int], **more: Any) -> dict[str, Any]:
        """Return the values of a statement for the tasks of a level after a place."""
        (queue, priority), (eta, seq) = level, after
        own = {"level_queue": queue, "level_priority": priority, "eta": eta, "seq": seq}
        return {**self._values, **own, **more}


def _clauses(where: TaskFilter) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions of a filter, and the values that they name."""
    clauses, values = [], {}
    for number, condition in enumerate(conditions(where)):
        name = f"where_{number}"
        clauses.append(condition.sql.format(f":{name}"))
        is_moment = condition.kind == "timestamptz"
        values[name] = to_micros(condition.value) if is_moment else condition.value
    return clauses, values


# The next level of pending tasks: a priority in use of a queue.
NEXT_LEVEL: Final = """
SELECT queue, priority FROM tasks INDEXED BY tasks_due
WHERE status = 'pending' AND queue = :queue AND priority < :priority
ORDER BY priority DESC LIMIT 1
"""
NEXT_QUEUE: Final = """
SELECT queue, priority FROM tasks INDEXED BY tasks_due
WHERE status = 'pending' AND queue > :queue
ORDER BY queue, priority DESC LIMIT 1
"""

# -- changes ---------------------------------------------------------------------------------

# The tasks of a batch, and what running ones hold.
REQUEST_CANCELS: Final = """
UPDATE leases SET cancelled = 1
WHERE seq IN (SELECT tasks.seq FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value)
"""
RELEASE_KEYS: Final = """
UPDATE tasks SET key_released = 1
WHERE id IN (SELECT value FROM json_each(:rows)) AND unique_key IS NOT NULL
"""
CANCEL_PENDING: Final = """
UPDATE tasks SET status = 'cancelled', error = NULL, traceback = NULL, finished_at = :now,
                 delete_at = :now + max(0, min(result_ttl, 315360000000000))
WHERE id IN (SELECT value FROM json_each(:rows)) AND status = 'pending'
"""
DELETE: Final = "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(:rows))"
POSTPONE: Final = """
UPDATE tasks SET eta = :eta WHERE id IN (SELECT value FROM json_each(:rows))
"""
SET_PRIORITY: Final = """
UPDATE tasks SET priority = :priority WHERE id IN (SELECT value FROM json_each(:rows))
"""
REPLACE_PENDING: Final = """
UPDATE tasks SET eta = coalesce(:eta, :now), payload = :payload
WHERE id = :id AND status = 'pending'
"""

# Whether a task is final, and as what it was repeated.
REPEATED: Final = "SELECT finished_at IS NOT NULL, retried_as FROM tasks WHERE id = ?"
SET_REPEATED: Final = "UPDATE tasks SET retried_as = ? WHERE id = ?"

# -- attempts --------------------------------------------------------------------------------

ATTEMPTS: Final = """
SELECT number, worker, started_at, ended_at, error, traceback FROM attempts
WHERE seq = (SELECT seq FROM tasks WHERE id = ?) ORDER BY rowid
"""

# Keep the attempts in progress of a batch of tasks as failed ones.
ADD_ATTEMPTS: Final = """
INSERT INTO attempts (seq, number, worker, started_at, ended_at, error, traceback)
SELECT tasks.seq, attempts, leases.worker, coalesce(started_at, :now), :now, :error, :traceback
FROM json_each(:seqs) AS batch JOIN tasks ON tasks.seq = batch.value
     JOIN leases ON leases.seq = tasks.seq
"""
# Delete all but the last attempts of a batch of tasks.
TRIM_ATTEMPTS: Final = f"""
DELETE FROM attempts WHERE rowid IN (
    SELECT place FROM (
        SELECT attempts.rowid AS place,
               row_number() OVER (PARTITION BY seq ORDER BY attempts.rowid DESC) AS age
        FROM json_each(:seqs) AS batch JOIN attempts ON attempts.seq = batch.value)
    WHERE age > {KEPT_FAILURES})
"""

# -- pauses ----------------------------------------------------------------------------------

PAUSE: Final = """
INSERT OR REPLACE INTO pauses (queue, reason, paused_by, paused_at, until)
VALUES (:queue, :reason, :by, :now, :until)
"""
RESUME: Final = "DELETE FROM pauses WHERE queue = ? RETURNING until"
PAUSES: Final = """
SELECT queue, reason, paused_by, paused_at, until FROM pauses
WHERE until IS NULL OR until > :now ORDER BY queue
"""

# -- workers ---------------------------------------------------------------------------------

_REPORTED: Final = tuple(WorkerReport.model_fields)
REPORT: Final = f"""
INSERT INTO workers ({select_list(_REPORTED)}, seen_at)
VALUES ({", ".join(f":{name}" for name in _REPORTED)}, :now)
ON CONFLICT (id) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _REPORTED)}, seen_at = excluded.seen_at
RETURNING ordered
"""
DEREGISTER: Final = "DELETE FROM workers WHERE id = ?"
ORDER: Final = "UPDATE workers SET ordered = ? WHERE id = ?"
WORKERS: Final = f"SELECT {select_list(_REPORTED)}, seen_at FROM workers ORDER BY host, pid, id"
RUNNING: Final = """
SELECT leases.worker, tasks.id FROM leases CROSS JOIN tasks ON tasks.seq = leases.seq
ORDER BY tasks.id LIMIT 100000
"""
STALE_WORKERS: Final = "SELECT EXISTS (SELECT 1 FROM workers WHERE seen_at < :before)"
FORGET_WORKERS: Final = "DELETE FROM workers WHERE seen_at < :before"


def report_values(report: WorkerReport, now: int) -> dict[str, Any]:
    """Return the values of `REPORT`."""
    fields = {name: getattr(report, name) for name in _REPORTED}
    started_at: datetime = report.started_at
    return fields | {
        "queues": dump_rows(report.queues),
        "functions": dump_rows(report.functions),
        "state": report.state.value,
        "started_at": to_micros(started_at),
        "now": now,
    }


# -- overview --------------------------------------------------------------------------------

# The queues that have tasks in progress, and how many each.
IN_PROGRESS: Final = """
SELECT tasks.queue, count(*) FROM leases CROSS JOIN tasks ON tasks.seq = leases.seq
GROUP BY tasks.queue
"""
# The levels of the pending tasks, found by seeks from one to the next: how many tasks of each are
# due and scheduled, up to a limit, and since when the first is due.
LEVELS: Final = """
WITH RECURSIVE queues (queue) AS (
    SELECT (SELECT min(queue) FROM tasks INDEXED BY tasks_due WHERE status = 'pending')
    UNION ALL
    SELECT (SELECT queue FROM tasks INDEXED BY tasks_due
            WHERE status = 'pending' AND queue > queues.queue ORDER BY queue LIMIT 1)
    FROM queues WHERE queue IS NOT NULL),
levels (queue, priority) AS (
    SELECT queue, (SELECT priority FROM tasks INDEXED BY tasks_due
                   WHERE status = 'pending' AND queue = queues.queue
                   ORDER BY priority DESC LIMIT 1)
    FROM queues WHERE queue IS NOT NULL
    UNION ALL
    SELECT queue, (SELECT priority FROM tasks INDEXED BY tasks_due
                   WHERE status = 'pending' AND queue = levels.queue AND priority < levels.priority
                   ORDER BY priority DESC LIMIT 1)
    FROM levels WHERE priority IS NOT NULL)
SELECT queue, priority,
       (SELECT count(*) FROM (
            SELECT 1 FROM tasks INDEXED BY tasks_due
            WHERE status = 'pending' AND queue = levels.queue AND priority = levels.priority
              AND eta <= :now LIMIT :limit)),
       (SELECT count(*) FROM (
            SELECT 1 FROM tasks INDEXED BY tasks_due
            WHERE status = 'pending' AND queue = levels.queue AND priority = levels.priority
              AND eta > :now LIMIT :limit)),
       (SELECT eta FROM tasks INDEXED BY tasks_due
        WHERE status = 'pending' AND queue = levels.queue AND priority = levels.priority
          AND eta <= :now ORDER BY eta LIMIT 1)
FROM levels WHERE priority IS NOT NULL ORDER BY queue, priority DESC
"""
# The functions of the tasks of a level that come first: of those that are due, and of those that a
# worker has put back since it could not run them.
HEAD: Final = """
SELECT function FROM (
    SELECT function FROM tasks INDEXED BY tasks_due
    WHERE status = 'pending' AND queue = :queue AND priority = :priority AND eta <= :now
    ORDER BY eta, seq LIMIT :due)
UNION
SELECT function FROM (
    SELECT function, misses FROM tasks INDEXED BY tasks_due
    WHERE status = 'pending' AND queue = :queue AND priority = :priority AND eta > :now
    ORDER BY eta, seq LIMIT :later)
WHERE misses > 0
"""
