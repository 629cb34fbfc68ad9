"""The SQL statements of the SQLite store.

Values are always bound. A batch is one JSON text (``:rows``) and, for bytes, one blob that is cut
with ``substr``. So a statement is the same for any batch size, and the interpreter's lock is given
up once a batch instead of once a row.

Statements that run over users' connections name the schema, ``main``: SQLite would prefer a
temporary table of the same name.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from sitq._task_batch import TaskBatch
from sitq.backends._rows import (
    INSERT_TYPES,
    RESULT_FIELDS,
    TASK_FIELDS,
    insert_values,
    select_list,
)
from sitq.backends.sqlite._rows import INFO_COLUMNS, dump_rows, pack_blob, to_micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Task

__all__ = ["insertion", "values_of"]

# When a final task is pruned. The retention is clamped, since a row may have been written by hand:
# SQLite refuses a sum past 64 bits, for this row and all of its batch.
_DELETE_AT: Final = f":now + max(0, min(result_ttl, {10 * 365 * 86_400 * 1_000_000}))"

# -- reserve ---------------------------------------------------------------------------------

# The queues that are paused, and until when.
PAUSED: Final = "SELECT queue, until FROM pauses WHERE until IS NULL OR until > ?"

# Every queue with pending tasks: a seek in the index from each name to the next.
PENDING_QUEUES: Final = """
WITH RECURSIVE names (queue) AS (
    SELECT min(queue) FROM tasks INDEXED BY tasks_due WHERE status = 'pending'
    UNION ALL
    SELECT (SELECT min(tasks.queue) FROM tasks INDEXED BY tasks_due
            WHERE status = 'pending' AND tasks.queue > names.queue)
    FROM names WHERE queue IS NOT NULL)
SELECT queue FROM names WHERE queue IS NOT NULL
"""

# The next lower priority in use among a queue's pending tasks.
NEXT_PRIORITY: Final = """
SELECT priority FROM tasks WHERE status = 'pending' AND queue = ? AND priority < ?
ORDER BY priority DESC LIMIT 1
"""

# Reserved tasks as one JSON text. The thread gives up the interpreter's lock for each row that it
# fetches, and would have to get it back from a busy event loop. Large payloads are left out.
_AS_JSON: Final = """
SELECT json_group_array(json_array(
    seq, id, function, queue, epoch + 1, attempts + 1, misses, crashes, eta, enqueued_at,
    CASE WHEN timeout IS NOT NULL THEN printf('%!.17g', timeout) END, retry, headers,
    CASE WHEN length(payload) <= 4096 THEN hex(payload) END))
"""

_IS_DUE: Final = """
    tasks INDEXED BY tasks_due
    WHERE status = 'pending' AND queue = :queue AND priority = :priority AND eta <= :now
      AND (expires_at IS NULL OR expires_at > :now)
"""

# The due tasks of one queue and one priority, in order of eta and insertion.
DUE: Final = f"""{_AS_JSON}
FROM (SELECT * FROM {_IS_DUE} ORDER BY eta, seq LIMIT :limit)
"""

# The sort keys of the due tasks of one queue and one priority, after a given key.
DUE_KEYS: Final = f"""
SELECT eta, seq FROM {_IS_DUE} AND (eta, seq) > (:eta, :seq) ORDER BY eta, seq LIMIT :limit
"""

# The tasks of a batch of keys, in any order.
DUE_ROWS: Final = f"""{_AS_JSON}
FROM tasks WHERE seq IN (SELECT value FROM json_each(:rows))
"""

# The payload of one task.
PAYLOAD: Final = "SELECT payload FROM tasks WHERE seq = ?"

# The earliest eta of one queue and one priority, past ones too.
FIRST_ETA: Final = """
SELECT eta FROM tasks INDEXED BY tasks_due
WHERE status = 'pending' AND queue = :queue AND priority = :priority
  AND (expires_at IS NULL OR expires_at > :now)
ORDER BY eta LIMIT 1
"""

# The earliest eta to come of one queue and one priority.
NEXT_ETA: Final = """
SELECT eta FROM tasks INDEXED BY tasks_due
WHERE status = 'pending' AND queue = :queue AND priority = :priority AND eta > :now
  AND (expires_at IS NULL OR expires_at > :now)
ORDER BY eta LIMIT 1
"""

# Mark each task of a batch as started; a CHECK refuses rows whose counters are out of range.
MARK_RESERVED: Final = """
UPDATE tasks SET status = 'in_progress', epoch = epoch + 1, attempts = attempts + 1,
                 started_at = :now
WHERE seq IN (SELECT value FROM json_each(:rows)) AND status = 'pending'
"""

# Insert a lease for each task of a batch, with its new epoch.
INSERT_LEASES: Final = """
INSERT OR REPLACE INTO leases (seq, epoch, worker, ends_at)
SELECT seq, epoch, :worker, :ends_at FROM tasks
WHERE seq IN (SELECT value FROM json_each(:rows)) AND status = 'in_progress'
"""

# -- finish ----------------------------------------------------------------------------------

# Store a batch of successes; a row whose epoch is not current is skipped. The rows are one object,
# keyed by task id.
SUCCEED_BATCH: Final = f"""
UPDATE tasks SET status = 'success', value = batch.value, error = NULL, traceback = NULL,
                 finished_at = :now, delete_at = {_DELETE_AT}
FROM (SELECT key AS id, value ->> 0 AS epoch,
             coalesce(substr(:blob, value ->> 1, value ->> 2), x'') AS value
      FROM json_each(:rows)) AS batch
WHERE tasks.id = batch.id AND tasks.status = 'in_progress' AND tasks.epoch = batch.epoch
"""

# The same for attempts that all returned the same value: the rows hold only epochs.
SUCCEED_ALIKE: Final = f"""
UPDATE tasks SET status = 'success', value = :value, error = NULL, traceback = NULL,
                 finished_at = :now, delete_at = {_DELETE_AT}
FROM json_each(:rows) AS batch
WHERE tasks.id = batch.key AND tasks.status = 'in_progress' AND tasks.epoch = batch.value
"""

# Delete the leases of a batch of tasks, given by either form of rows.
DELETE_LEASES: Final = """
DELETE FROM leases WHERE seq IN (
    SELECT tasks.seq FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.key)
"""

# What is needed to end an attempt; no row if its epoch is not current.
OPEN_ATTEMPT: Final = """
SELECT tasks.seq, attempts, max_attempts, leases.cancelled
FROM tasks JOIN leases ON leases.seq = tasks.seq
WHERE tasks.id = :id AND status = 'in_progress' AND tasks.epoch = :epoch
  AND leases.epoch = :epoch
"""

# Make a task final.
SET_FINAL: Final = f"""
UPDATE main.tasks SET status = :status, value = :value, error = :error, traceback = :traceback,
                 finished_at = :now, delete_at = {_DELETE_AT}
WHERE seq = :seq
"""

# Make a task pending again after a failed attempt.
SET_RETRY: Final = """
UPDATE tasks SET status = 'pending', eta = :eta, error = :error, traceback = :traceback
WHERE seq = :seq
"""

# Make a task pending again without counting this attempt.
SET_RELEASED: Final = """
UPDATE tasks SET status = 'pending', attempts = max(attempts - 1, 0) WHERE seq = :seq
"""

# Make a task pending again for a worker that knows its function.
SET_MISSED: Final = """
UPDATE tasks SET status = 'pending', attempts = max(attempts - 1, 0),
                 misses = min(misses, 1000000) + 1, eta = :eta
WHERE seq = :seq
"""

# Delete one lease.
DELETE_LEASE: Final = "DELETE FROM main.leases WHERE seq = :seq"

# -- leases ----------------------------------------------------------------------------------

# Renew the leases of a batch whose epoch is current.
RENEW: Final = """
UPDATE leases SET ends_at = :ends_at
FROM (SELECT tasks.seq AS seq, batch.value ->> 1 AS epoch
      FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value ->> 0) AS mine
WHERE leases.seq = mine.seq AND leases.epoch = mine.epoch
"""

# The leases of a batch that are current, and whether their cancellation is requested.
LEASE_STATES: Final = """
SELECT tasks.id, leases.epoch, leases.cancelled
FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value ->> 0
     JOIN leases ON leases.seq = tasks.seq AND leases.epoch = batch.value ->> 1
"""

# Store the progress of an attempt.
SET_PROGRESS: Final = """
UPDATE leases SET progress = :progress
WHERE epoch = :epoch AND seq = (SELECT seq FROM tasks WHERE id = :id)
"""

# Request the cancellation of a running task.
REQUEST_CANCEL: Final = "UPDATE leases SET cancelled = 1 WHERE seq = ?"

# -- sweep -----------------------------------------------------------------------------------

# Whether a sweep would find anything; a read, so that idle workers write nothing.
SWEEP_DUE: Final = """
SELECT EXISTS (SELECT 1 FROM leases WHERE ends_at <= :now)
    OR EXISTS (SELECT 1 FROM workers WHERE seen_at < :stale)
    OR EXISTS (SELECT 1 FROM tasks WHERE status = 'pending' AND expires_at IS NOT NULL
                                     AND expires_at <= :now)
    OR EXISTS (SELECT 1 FROM tasks WHERE finished_at IS NOT NULL AND delete_at <= :now)
"""

# The leases that have ended without an outcome.
ENDED_LEASES: Final = """
SELECT seq FROM leases WHERE ends_at <= :now ORDER BY ends_at, seq LIMIT :limit
"""

# Reclaim tasks whose leases have ended: cancelled, failed as lost, or pending again.
RECLAIM: Final = f"""
UPDATE tasks SET
    attempts = max(attempts - 1, 0),
    crashes = min(crashes, 1000000) + 1,
    status = CASE WHEN lease.cancelled THEN 'cancelled'
                  WHEN crashes + 1 >= :max_crashes THEN 'failed' ELSE 'pending' END,
    error = CASE WHEN lease.cancelled THEN NULL
                 WHEN crashes + 1 >= :max_crashes THEN printf(:error, crashes + 1) ELSE error END,
    traceback = CASE WHEN lease.cancelled OR crashes + 1 >= :max_crashes THEN NULL
                     ELSE traceback END,
    finished_at = CASE WHEN lease.cancelled OR crashes + 1 >= :max_crashes THEN :now END,
    delete_at = CASE WHEN lease.cancelled OR crashes + 1 >= :max_crashes
                     THEN {_DELETE_AT} END
FROM (SELECT leases.seq, leases.epoch, leases.cancelled FROM leases
      WHERE leases.seq IN (SELECT value FROM json_each(:rows))) AS lease
WHERE tasks.seq = lease.seq AND tasks.epoch = lease.epoch AND tasks.status = 'in_progress'
"""

# Delete the leases of reclaimed tasks.
DELETE_ENDED: Final = "DELETE FROM leases WHERE seq IN (SELECT value FROM json_each(:rows))"

# Expire tasks that were not started in time.
EXPIRE: Final = f"""
UPDATE tasks SET status = 'expired', error = NULL, traceback = NULL,
                 finished_at = :now, delete_at = {_DELETE_AT}
WHERE seq IN (SELECT seq FROM tasks
              WHERE status = 'pending' AND expires_at IS NOT NULL AND expires_at <= :now
              ORDER BY expires_at, seq LIMIT :limit)
"""

# Delete final tasks whose retention is over.
PRUNE: Final = """
DELETE FROM tasks WHERE seq IN (
    SELECT seq FROM tasks WHERE finished_at IS NOT NULL AND delete_at <= :now
    ORDER BY delete_at, seq LIMIT :limit)
"""

# Delete final tasks that ended before a given time, whatever their retention.
PRUNE_OLDER: Final = """
DELETE FROM tasks WHERE seq IN (
    SELECT seq FROM tasks INDEXED BY tasks_done
    WHERE finished_at IS NOT NULL AND finished_at <= :before
    ORDER BY finished_at, seq LIMIT :limit)
"""

# -- look ups --------------------------------------------------------------------------------

# The number and status of a task, for a cancellation.
STATUS: Final = """
SELECT seq, status FROM tasks WHERE id = ?
"""

# The columns of a `TaskInfo`.
INFOS: Final = f"""
SELECT {INFO_COLUMNS}
FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value
     LEFT JOIN leases ON leases.seq = tasks.seq
"""

# The results of tasks; only the id is used of those that are not final.
_RESULT: Final = select_list(RESULT_FIELDS, task_id="tasks.id", value="tasks.value")
RESULTS: Final = f"""
SELECT {_RESULT}
FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value
"""

# A task as it was enqueued.
_TASK: Final = select_list(TASK_FIELDS, id="tasks.id", result_ttl="result_ttl / 1e6")
STORED: Final = f"""
SELECT {_TASK} FROM tasks WHERE id = ?
"""

# The same for a batch of ids.
STORED_BATCH: Final = f"""
SELECT {_TASK} FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value
"""

# -- transactions of the user's own ----------------------------------------------------------

# The files of a connection; it may have others attached.
DATABASES: Final = "PRAGMA database_list"

# Store one success, if its epoch is current; returns a row if so.
SUCCEED_ONE: Final = f"""
UPDATE main.tasks SET status = 'success', value = :value, error = NULL, traceback = NULL,
                 finished_at = :now, delete_at = {_DELETE_AT}
WHERE id = :id AND status = 'in_progress' AND epoch = :epoch
RETURNING seq
"""

# A number that changes when another connection has committed.
DATA_VERSION: Final = "PRAGMA data_version"

# Which tasks of a batch are visible, and whether they are final.
SEEN: Final = """
SELECT tasks.id, finished_at IS NOT NULL
FROM json_each(:rows) AS batch JOIN tasks ON tasks.id = batch.value
"""


# A payload's offset and length in the blob are one number: SQLite reads that faster than a pair.
_LENGTH_BITS: Final = 32

_INSERT_COLUMNS: Final = f"""
INSERT INTO main.tasks (enqueued_at, {", ".join(INSERT_TYPES)})
"""


def _insert_list(default: str, **columns: str) -> str:
    """Return what is inserted into each column but the first; ``{}`` stands for its name."""
    return ", ".join(columns.get(name, default).format(name) for name in INSERT_TYPES)


# Which rows hold their unique keys. Must equal the condition of the index, or it is not used.
_HOLDS_KEY: Final = """
unique_key IS NOT NULL AND finished_at IS NULL AND key_released = 0
  AND (unique_until IS NULL OR epoch = 0)
"""

# Store one task; the statements for batches take twice as long for it with cold caches.
INSERT_ONE: Final = f"""{_INSERT_COLUMNS}
VALUES (:now, {_insert_list(":{}", eta="coalesce(:eta, :now)")})
"""

# Store one task unless its unique key is held by another.
INSERT_UNIQUE: Final = f"""{INSERT_ONE}
ON CONFLICT (unique_key) WHERE {_HOLDS_KEY} DO NOTHING
"""

# The same over a user's connection, which may not count rows; it takes 4 % more time.
INSERT_UNIQUE_RETURNING: Final = f"""{INSERT_UNIQUE}
RETURNING id
"""

# The task that holds a unique key, and what to do if it can never start again. "expire": it has
# expired. "release" its key: its eta is after its expiry, or its lease ended after its expiry and
# its worker may still report. NULL: it keeps the key, or it is the new task itself.
KEY_HOLDER: Final = f"""
SELECT id, seq,
       CASE WHEN id = :id THEN NULL
            WHEN status = 'pending' AND expires_at <= :now THEN 'expire'
            WHEN status = 'pending' AND expires_at <= eta THEN 'release'
            WHEN expires_at <= :now AND EXISTS (
                SELECT 1 FROM main.leases WHERE leases.seq = tasks.seq AND ends_at <= :now)
            THEN 'release' END
FROM main.tasks WHERE unique_key = :key AND {_HOLDS_KEY}
"""

# Release the unique key of a task that is not final.
RELEASE_KEY: Final = """
UPDATE main.tasks SET key_released = 1
WHERE seq = :seq AND unique_key IS NOT NULL AND finished_at IS NULL
"""

# Store all tasks of a batch, in its order.
_LAST: Final = len(INSERT_TYPES) - 1
_FROM_ROW: Final = {name: f"value ->> {number}" for number, name in enumerate(INSERT_TYPES)} | {
    "eta": f"coalesce(value ->> {[*INSERT_TYPES].index('eta')}, :now)",
    "payload": f"coalesce(substr(:blob, value ->> {_LAST}, value ->> {_LAST + 1}), x'')",
}
INSERT_BATCH: Final = f"""{_INSERT_COLUMNS}
SELECT :now, {_insert_list("", **_FROM_ROW)}
FROM json_each(:rows)
"""

# Store a batch of tasks that differ only in ids and payloads: reading the same values for each row
# is half of the work of the statement above. ``:places`` is an object, keyed by task id.
_PLACE: Final = f"value >> {_LENGTH_BITS}, value & {2**_LENGTH_BITS - 1}"
_ALIKE: Final = {
    "id": "key",
    "eta": "coalesce(:eta, :now)",
    "unique_key": "NULL",
    "unique_until": "NULL",
    "payload": f"coalesce(substr(:blob, {_PLACE}), x'')",
}
INSERT_ALIKE: Final = f"""{_INSERT_COLUMNS}
SELECT :now, {_insert_list(":{}", **_ALIKE)}
FROM json_each(:places)
"""


def insertion(tasks: Sequence[Task], now: int) -> tuple[str, dict[str, Any]]:
    """Return the statement that stores tasks without unique keys, and its values."""
    if not isinstance(tasks, TaskBatch):
        if len(tasks) == 1:
            return INSERT_ONE, values_of(tasks[0], now)
        return INSERT_BATCH, _batch_values(tasks, now)
    if len(tasks.ids) == 1:
        (task_id,), (payload,) = tasks.ids, tasks.payloads
        one = {"id": task_id, "payload": payload, "now": now}
        return INSERT_ONE, _columns(tasks.pattern) | one
    lengths = [len(payload) for payload in tasks.payloads]
    places = [
        f'"{task_id}":{start << _LENGTH_BITS | length}'
        for task_id, start, length in zip(
            tasks.ids, accumulate(lengths, initial=1), lengths, strict=False
        )
    ]
    own = {"places": f"{{{','.join(places)}}}", "blob": b"".join(tasks.payloads), "now": now}
    return INSERT_ALIKE, _columns(tasks.pattern) | own


def values_of(task: Task, now: int) -> dict[str, Any]:
    """Return the values of the statements that store one task."""
    return {**_columns(task), "payload": task.payload, "now": now}


def _batch_values(tasks: Sequence[Task], now: int) -> dict[str, Any]:
    """Return the values of `INSERT_BATCH`."""
    blob, places = pack_blob(task.payload for task in tasks)
    rows = [(*_columns(task).values(), *place) for task, place in zip(tasks, places, strict=True)]
    return {"rows": dump_rows(rows), "blob": blob, "now": now}


def _columns(task: Task) -> dict[str, Any]:
    """Return a task as the columns of an insert, without its payload."""
    return insert_values(task, to_micros, _micros)


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
