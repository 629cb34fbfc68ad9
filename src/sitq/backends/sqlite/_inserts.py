"""The named statements that store tasks, a sentence each, and the values that they take."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from sitq._alike import AlikeTasks
from sitq.backends._texts import dump_headers, dump_policy
from sitq.backends.sqlite._rows import cut, dump_rows, to_micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Task

__all__ = ["insertion", "values_of"]

# A payload's place in the blob is one number: SQLite reads that faster than a pair of them.
_LENGTH_BITS: Final = 32

_INSERT_COLUMNS: Final = """
INSERT INTO main.tasks (id, queue, priority, eta, function, max_attempts, timeout, unique_key,
                   unique_until, expires_at, result_ttl, enqueued_at, retry_of, retry, headers,
                   payload)
"""

# Which rows hold their unique keys; as the index on them says, or it is not used.
_HOLDS_KEY: Final = """
unique_key IS NOT NULL AND finished_at IS NULL AND key_released = 0
  AND (unique_until IS NULL OR epoch = 0)
"""

# Store one task. With cold caches, the statements for batches take twice as long for it.
INSERT_ONE: Final = (
    _INSERT_COLUMNS
    + """
VALUES (:id, :queue, :priority, coalesce(:eta, :now), :function, :max_attempts, :timeout,
        :unique_key, :unique_until, :expires_at, :result_ttl, :now, :retry_of, :retry, :headers,
        :payload)
"""
)

# Store one task unless its unique key is held by another.
INSERT_UNIQUE: Final = (
    INSERT_ONE
    + f"""
ON CONFLICT (unique_key) WHERE {_HOLDS_KEY} DO NOTHING
"""
)

# As `INSERT_UNIQUE`; tells by a row if the task was stored.
INSERT_UNIQUE_TOLD: Final = (
    INSERT_UNIQUE
    + """
RETURNING id
"""
)

# The task that holds a unique key, and what becomes of it, if it is not the one that asks and can
# never start again: "expire" it, or "release" its key, if it was put off beyond its expiry, or its
# worker, whose lease ended, may still report.
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

# Take the unique key from a task that is not final.
RELEASE_KEY: Final = """
UPDATE main.tasks SET key_released = 1
WHERE seq = :seq AND unique_key IS NOT NULL AND finished_at IS NULL
"""

# Store all tasks of a batch, in its order.
INSERT_BATCH: Final = (
    _INSERT_COLUMNS
    + """
SELECT value ->> 0, value ->> 1, value ->> 2, coalesce(value ->> 3, :now), value ->> 4,
       value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, :now,
       value ->> 11, value ->> 12, value ->> 13,
       coalesce(substr(:blob, value ->> 14, value ->> 15), x'')
FROM json_each(:rows)
"""
)

# Store a batch of tasks that differ in their ids and payloads only: half of the work of the
# statement above is reading the same values again for each row. ``:places`` is an object, whose
# names are the ids.
INSERT_ALIKE: Final = (
    _INSERT_COLUMNS
    + f"""
SELECT key, :queue, :priority, coalesce(:eta, :now), :function, :max_attempts, :timeout, NULL,
       NULL, :expires_at, :result_ttl, :now, :retry_of, :retry, :headers,
       coalesce(substr(:blob, value >> {_LENGTH_BITS}, value & {2**_LENGTH_BITS - 1}), x'')
FROM json_each(:places)
"""
)


def insertion(tasks: Sequence[Task], now: int) -> tuple[str, dict[str, Any]]:
    """The statement that stores tasks without unique keys, and its values."""
    if not isinstance(tasks, AlikeTasks):
        if len(tasks) == 1:
            return INSERT_ONE, values_of(tasks[0], now)
        return INSERT_BATCH, _batch_values(tasks, now)
    if len(tasks) == 1:
        (task_id,), (payload,) = tasks.ids, tasks.payloads
        return INSERT_ONE, _columns(tasks.pattern) | {
            "id": task_id,
            "payload": payload,
            "now": now,
        }
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
    """The values of the statements that store one task."""
    return {**_columns(task), "payload": task.payload, "now": now}


def _batch_values(tasks: Sequence[Task], now: int) -> dict[str, Any]:
    """The values of `INSERT_BATCH`."""
    blob, places = cut(task.payload for task in tasks)
    rows = [(*_columns(task).values(), *place) for task, place in zip(tasks, places, strict=True)]
    return {"rows": dump_rows(rows), "blob": blob, "now": now}


def _columns(task: Task) -> dict[str, Any]:
    """A task as the columns of an insert, without its payload."""
    retry = task.retry
    return {
        "id": task.id,
        "queue": task.queue,
        "priority": task.priority,
        "eta": None if task.eta is None else to_micros(task.eta),
        "function": task.function,
        "max_attempts": None if retry is None else retry.max_attempts,
        "timeout": task.timeout,
        "unique_key": task.unique_key,
        "unique_until": None if task.unique_until == "end" else task.unique_until,
        "expires_at": None if task.expires_at is None else to_micros(task.expires_at),
        "result_ttl": round(task.result_ttl * 1_000_000),
        "retry_of": task.retry_of,
        "retry": None if retry is None else dump_policy(retry),
        "headers": dump_headers(task.headers),
    }
