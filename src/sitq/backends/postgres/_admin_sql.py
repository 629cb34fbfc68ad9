"""The SQL statements for the administration of the PostgreSQL store; see ``_sql``.

Those that list tasks are made for each filter, of the parts that it needs; values are bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.administration import KEPT_FAILURES, WorkerReport
from sitq.backends._rows import (
    ATTEMPT_FIELDS,
    INFO_FIELDS,
    INSERT_TYPES,
    MOMENTS,
    TASK_FIELDS,
    select_list,
)
from sitq.backends._task_filters import conditions
from sitq.backends.postgres._sql import MOMENT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sitq.administration import TaskFilter

__all__ = ["id_count", "id_floor", "id_page", "pending_count", "pending_last", "pending_page"]

Statement = tuple[str, list[Any]]

_TASKS_ID: Final = {"task_id": "id"}


def _sendable(column: str) -> str:
    """Return the moment of a column as the driver can read it, and send it in a cursor.

    What is too late becomes infinite, so that a cursor does not lead back before it.
    """
    return f"""
        CASE WHEN {column} > timestamptz '9999-12-31 23:59:59.999999+00' THEN timestamptz 'infinity'
             WHEN {column} < timestamptz '0001-01-01 00:00:00.000001+00'
             THEN timestamptz '0001-01-01 00:00:00.000001+00'
             ELSE {column} END"""


_INFO: Final = ", ".join(
    _sendable(f"tasks.{name}") if name in MOMENTS else f"tasks.{_TASKS_ID.get(name, name)}"
    for name in INFO_FIELDS
)


class _Values(list[Any]):
    """The values of a statement, in the order in which it names them."""

    def bind(self, value: Any, kind: str) -> str:
        """Add a value; return what stands for it."""
        self.append(value)
        return f"${len(self)}::{kind}"


def _shown(names: Iterable[str]) -> str:
    """Return a select list."""
    moments = {*MOMENTS, "ended_at", "seen_at", "paused_at", "until"}
    return ", ".join(_sendable(name) if name in moments else name for name in names)


# -- lists by id -----------------------------------------------------------------------------

# The conditions of an index, so that it is used.
_UNSUCCESSFUL: Final = "finished_at IS NOT NULL AND value IS NULL AND status = '{}'"
_RUNNING: Final = "(SELECT * FROM sitq.tasks WHERE status = 'in_progress' OFFSET 0) AS tasks"


def _source(where: TaskFilter, values: _Values) -> tuple[str, str]:
    """Return where the tasks of a filter are looked for, and which of them have to be looked at."""
    source, scanned = "sitq.tasks", "true"
    if where.status in {"failed", "cancelled", "expired"}:
        scanned = _UNSUCCESSFUL.format(where.status)
    if where.ids is not None:
        scanned += f" AND tasks.id = ANY ({values.bind(list(where.ids), 'text[]')})"
    elif where.status == "in_progress" or where.worker is not None:
        # Without OFFSET, the server might read all ids backwards to find the few that run.
        source = _RUNNING
    return source, scanned


def _clauses(where: TaskFilter, values: _Values) -> str:
    """Return the other conditions of a filter, each after an AND."""
    found = [each.sql.format(values.bind(each.value, each.kind)) for each in conditions(where)]
    if where.worker is not None:
        found.append(f"tasks.worker = {values.bind(where.worker, 'text')}")
    if where.status in {"success", "in_progress"}:
        found.append(f"tasks.status = '{where.status}'")
    return "".join(f" AND {clause}" for clause in found)


def id_floor(where: TaskFilter, before: str, bound: int) -> Statement:
    """Return the statement for the last of so many rows: its id, and when it was enqueued."""
    values = _Values()
    source, scanned = _source(where, values)
    sql = f"""
        SELECT id, {_sendable("enqueued_at")} FROM sitq.tasks WHERE id = (
            SELECT id FROM {source}
            WHERE {scanned} AND tasks.id < {values.bind(before, "text")}
            ORDER BY tasks.id DESC LIMIT 1 OFFSET {values.bind(bound - 1, "int8")})"""
    return sql, values


def id_page(where: TaskFilter, before: str, floor: str, limit: int) -> Statement:
    """Return the statement for the tasks of a page, the newest first."""
    values = _Values()
    matching = _matching(where, before, floor, values)
    sql = f"""
        SELECT {_INFO} FROM {matching}
        ORDER BY tasks.id DESC LIMIT {values.bind(limit, "int8")}"""
    return sql, values


def id_count(where: TaskFilter, before: str, floor: str, most: int) -> Statement:
    """Return the statement that counts tasks."""
    values = _Values()
    matching = _matching(where, before, floor, values)
    sql = f"""
        SELECT count(*) FROM (
            SELECT FROM {matching} LIMIT {values.bind(most, "int8")}) AS found"""
    return sql, values


def _matching(where: TaskFilter, before: str, floor: str, values: _Values) -> str:
    source, scanned = _source(where, values)
    bounds = (
        f"tasks.id < {values.bind(before, 'text')} AND tasks.id >= {values.bind(floor, 'text')}"
    )
    return f"{source} WHERE {scanned} AND {bounds}{_clauses(where, values)}"


# -- lists of pending tasks ------------------------------------------------------------------

# A place in the order of pending tasks: queue, priority, eta, number. No eta: after all of a level.
Place = tuple[str, int, "datetime | None", int]


def _pending(
    now: datetime | None, where: TaskFilter, after: Place, most: int, values: _Values
) -> str:
    """Return the call of the function that says where pending tasks are, in their order."""
    side = where.status if where.status in {"due", "scheduled"} else None
    queue, priority, eta, seq = after
    arguments = [
        f"coalesce({values.bind(now, 'timestamptz')}, statement_timestamp())",
        values.bind(where.queue, "text"),
        values.bind(side, "text"),
        values.bind(queue, "text"),
        values.bind(priority, "int4"),
        values.bind(eta, "timestamptz"),
        values.bind(seq, "int8"),
        values.bind(most, "int4"),
    ]
    return f"sitq.pending({', '.join(arguments)}) AS place"


# The tasks of one row of that function.
_AT_PLACE: Final = """
    tasks.status = 'pending' AND tasks.queue = place.queue AND tasks.priority = place.priority
    AND (tasks.eta, tasks.seq) > (place.after_eta, place.after_seq)
    AND (tasks.eta, tasks.seq) <= (place.last_eta, place.last_seq)"""


def _pending_clauses(where: TaskFilter, values: _Values) -> str:
    found = _clauses(where, values)
    if where.ids is not None:
        found += f" AND tasks.id = ANY ({values.bind(list(where.ids), 'text[]')})"
    if where.status == "retrying":
        found += " AND tasks.attempts > 0"
    return found


def is_selective(where: TaskFilter) -> bool:
    """Return whether not every pending task of the filter's queue and time matches it."""
    return bool(_pending_clauses(where.narrowed(queue=None), _Values()))


def pending_page(
    now: datetime | None, where: TaskFilter, after: Place, scanned: int, limit: int
) -> Statement:
    """Return the statement for the tasks of a page, each with its number, in order."""
    values = _Values()
    places = _pending(now, where, after, scanned, values)
    clauses = _pending_clauses(where, values)
    most = values.bind(limit, "int8")
    sql = f"""
        SELECT {_INFO}, tasks.seq FROM {places}, LATERAL (
            SELECT * FROM sitq.tasks WHERE {_AT_PLACE} {clauses}
            ORDER BY tasks.eta, tasks.seq LIMIT {most}) AS tasks
        ORDER BY place.nr, tasks.eta, tasks.seq LIMIT {most}"""
    return sql, values


def pending_last(now: datetime | None, where: TaskFilter, after: Place, scanned: int) -> Statement:
    """Return the statement for the last of so many rows: their number, and its place."""
    values = _Values()
    sql = f"""
        SELECT place.total, place.queue, place.priority,
               {_sendable("coalesce(tasks.eta, place.after_eta)")},
               coalesce(tasks.seq, place.after_seq),
               {_sendable(f"coalesce(tasks.enqueued_at, {MOMENT})")}
        FROM (SELECT * FROM {_pending(now, where, after, scanned, values)}
              ORDER BY nr DESC LIMIT 1) AS place
             LEFT JOIN LATERAL (SELECT * FROM sitq.tasks WHERE {_AT_PLACE}
                                ORDER BY tasks.eta DESC, tasks.seq DESC LIMIT 1) AS tasks ON true"""
    return sql, values


def pending_count(
    now: datetime | None, where: TaskFilter, after: Place, scanned: int, most: int
) -> Statement:
    """Return the statement that counts tasks."""
    values = _Values()
    places = _pending(now, where, after, scanned, values)
    clauses = _pending_clauses(where, values)
    most_text = values.bind(most, "int8")
    sql = f"""
        SELECT count(*) FROM (
            SELECT FROM {places}, LATERAL (
                SELECT FROM sitq.tasks WHERE {_AT_PLACE} {clauses} LIMIT {most_text}) AS matching
            LIMIT {most_text}) AS found"""
    return sql, values


# -- changes ---------------------------------------------------------------------------------


def _change(assignments: str, guard: str) -> str:
    """Return the statement that changes those of a batch that can be changed, and their ids.

    What another transaction has locked is skipped.
    """
    return f"""
WITH moment AS (SELECT {MOMENT} AS now),
mine AS (
    SELECT id, status FROM sitq.tasks WHERE id = ANY ($2::text[]) AND {guard}
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE sitq.tasks SET {assignments} FROM mine, moment WHERE tasks.id = mine.id
RETURNING tasks.id, mine.status
"""


CANCEL_TASKS: Final = _change(
    """
    status = CASE mine.status WHEN 'pending' THEN 'cancelled' ELSE tasks.status END,
    cancel_requested = mine.status = 'in_progress',
    key_released = tasks.key_released OR mine.status = 'in_progress',
    error = CASE mine.status WHEN 'pending' THEN NULL ELSE tasks.error END,
    traceback = CASE mine.status WHEN 'pending' THEN NULL ELSE tasks.traceback END,
    finished_at = CASE mine.status WHEN 'pending' THEN moment.now END,
    delete_at = CASE mine.status WHEN 'pending' THEN moment.now
        + make_interval(secs => greatest(0, least(tasks.result_ttl, 315360000))) END""",
    "finished_at IS NULL",
)
# With "status = 'pending'", the server might read all pending tasks to find those of the batch.
_PENDING: Final = "finished_at IS NULL AND status <> 'in_progress'"
POSTPONE: Final = _change("eta = $3::timestamptz", f"{_PENDING} AND eta < $3::timestamptz")
SET_PRIORITY: Final = _change("priority = $3::int2", _PENDING)
DELETE: Final = """
WITH mine AS (
    SELECT id FROM sitq.tasks WHERE id = ANY ($1::text[]) AND status <> 'in_progress'
    ORDER BY id FOR UPDATE SKIP LOCKED),
cleared AS (DELETE FROM sitq.attempts USING mine WHERE attempts.task_id = mine.id)
DELETE FROM sitq.tasks USING mine WHERE tasks.id = mine.id RETURNING tasks.id
"""
REPLACE_PENDING: Final = f"""
UPDATE sitq.tasks SET eta = coalesce($3::timestamptz, {MOMENT}), payload = $4::bytea
WHERE id = $2::text AND status = 'pending' RETURNING id
"""
_BATCH: Final = ", ".join(
    f"${number}::{kind}[]" for number, kind in enumerate(INSERT_TYPES.values(), start=2)
)
REPEAT: Final = f"""
SELECT sitq.repeat(${len(INSERT_TYPES) + 2}::bool, {MOMENT}, {_BATCH})
"""
STORED_BATCH: Final = f"""
SELECT {select_list(TASK_FIELDS)} FROM sitq.tasks WHERE id = ANY ($1::text[])
"""

# -- attempts --------------------------------------------------------------------------------

ATTEMPTS: Final = f"""
SELECT {_shown(ATTEMPT_FIELDS)} FROM sitq.attempts WHERE task_id = $1::text
ORDER BY seq DESC LIMIT {KEPT_FAILURES}
"""

# -- pauses ----------------------------------------------------------------------------------

# It waits for reservations under way, which may hand tasks of the queue over: see "reserve".
PAUSE: Final = f"""
WITH turn AS MATERIALIZED (
    SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('sitq.pauses', 0)))
INSERT INTO sitq.pauses (queue, reason, paused_by, paused_at, until)
SELECT $2::text, $3::text, $4::text, {MOMENT}, $5::timestamptz FROM turn
ON CONFLICT (queue) DO UPDATE SET reason = excluded.reason, paused_by = excluded.paused_by,
    paused_at = excluded.paused_at, until = excluded.until
"""
RESUME: Final = f"""
DELETE FROM sitq.pauses WHERE queue = $2::text RETURNING coalesce(until > {MOMENT}, true)
"""
PAUSES: Final = f"""
SELECT {_shown(("queue", "reason", "paused_by", "paused_at", "until"))} FROM sitq.pauses
WHERE until IS NULL OR until > {MOMENT} ORDER BY queue
"""

# -- workers ---------------------------------------------------------------------------------

_WORKER_TYPES: Final = {
    "id": "text",
    "host": "text",
    "pid": "int8",
    "version": "text",
    "queues": "text[]",
    "functions": "text[]",
    "slots": "int4",
    "running": "int4",
    "state": "text",
    "lease": "float8",
    "started_at": "timestamptz",
}
_REPORTED: Final = tuple(WorkerReport.model_fields)
_REPORT: Final = ", ".join(
    f"${number}::{_WORKER_TYPES[name]}" for number, name in enumerate(_REPORTED, start=2)
)
# Store what a worker says of itself, and return its orders and the paused queues.
REPORT: Final = f"""
WITH reported AS (
    INSERT INTO sitq.workers ({", ".join(_REPORTED)}, seen_at) VALUES ({_REPORT}, {MOMENT})
    ON CONFLICT (id) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _REPORTED)}, seen_at = excluded.seen_at
    RETURNING ordered)
SELECT ordered, ARRAY(SELECT queue FROM sitq.pauses WHERE until IS NULL OR until > {MOMENT})
FROM reported
"""
DEREGISTER: Final = "DELETE FROM sitq.workers WHERE id = $1::text"
ORDER: Final = """
UPDATE sitq.workers SET ordered = $2::text WHERE id = $1::text RETURNING id
"""
WORKERS: Final = f"""
SELECT {_shown((*_REPORTED, "seen_at"))}, {MOMENT} FROM sitq.workers ORDER BY host, pid, id
"""
RUNNING: Final = """
SELECT worker, id FROM sitq.tasks WHERE status = 'in_progress' ORDER BY id LIMIT 100000
"""

# -- overview --------------------------------------------------------------------------------

NOW: Final = f"SELECT {MOMENT}"
# The levels of the pending tasks, each a queue and a priority, found by seeks in the index.
_LEVELS: Final = """
WITH RECURSIVE levels (queue, priority) AS (
    (SELECT task.queue, task.priority FROM sitq.tasks AS task WHERE task.status = 'pending'
     ORDER BY task.queue, task.priority DESC LIMIT 1)
    UNION ALL
    SELECT next.queue, next.priority FROM levels, LATERAL (
        (SELECT 1 AS rank, task.queue, task.priority FROM sitq.tasks AS task
         WHERE task.status = 'pending' AND task.queue = levels.queue
           AND task.priority < levels.priority
         ORDER BY task.priority DESC LIMIT 1)
        UNION ALL
        (SELECT 2, task.queue, task.priority FROM sitq.tasks AS task
         WHERE task.status = 'pending' AND task.queue > levels.queue
         ORDER BY task.queue, task.priority DESC LIMIT 1)
        ORDER BY rank LIMIT 1) AS next)
"""
_LEVEL: Final = """
    FROM sitq.tasks AS task WHERE task.status = 'pending' AND task.queue = levels.queue
      AND task.priority = levels.priority AND task.eta
"""
# How many tasks of each level are due and scheduled, and for how long the first has been due.
LEVELS: Final = f"""{_LEVELS}
SELECT levels.queue, levels.priority, due.number, later.number,
       extract(epoch FROM {MOMENT} - due.first)::float8
FROM levels,
     LATERAL (SELECT count(*) AS number, min(eta) AS first FROM (
         SELECT task.eta {_LEVEL} <= {MOMENT} ORDER BY task.eta LIMIT $2::int8) AS one) AS due,
     LATERAL (SELECT count(*) AS number FROM (
         SELECT {_LEVEL} > {MOMENT} LIMIT $2::int8) AS one) AS later
ORDER BY levels.queue, levels.priority DESC
"""
# The functions of so many tasks of each of some levels that come first: of those that are due, and
# of those that a worker has put back since it could not run them.
HEADS: Final = f"""
SELECT DISTINCT levels.queue, head.function
FROM unnest($2::text[], $3::int2[], $4::int8[], $5::int8[])
         AS levels (queue, priority, due, later), LATERAL (
    (SELECT task.function {_LEVEL} <= {MOMENT} ORDER BY task.eta, task.seq LIMIT levels.due)
    UNION ALL
    SELECT later.function FROM (
        SELECT task.function, task.misses {_LEVEL} > {MOMENT}
        ORDER BY task.eta, task.seq LIMIT levels.later) AS later
    WHERE later.misses > 0) AS head
"""
IN_PROGRESS: Final = """
SELECT queue, count(*) FROM sitq.tasks WHERE status = 'in_progress' GROUP BY queue
"""
