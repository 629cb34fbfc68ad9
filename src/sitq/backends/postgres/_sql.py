"""The SQL statements of the PostgreSQL store.

Values are always bound, and a batch is passed as arrays. Every operation is one statement, and so
one round trip and one transaction. The first parameter is the time of a test's clock, or NULL for
the server's clock. The schema is written as ``sitq`` and replaced by the one in use. All other
names are in ``pg_catalog``, the only search path of the connections and of the store's functions.
"""

from __future__ import annotations

from typing import Final

from sitq.administration import KEPT_FAILURES
from sitq.backends._rows import (
    INFO_FIELDS,
    INSERT_TYPES,
    RESULT_FIELDS,
    TASK_FIELDS,
    select_list,
)

__all__ = ["MOMENT", "Statements"]


class Statements(dict[str, str]):
    """The statements as they are for one schema.

    Args:
        schema: a name of lower-case letters, digits and underscores.
    """

    def __init__(self, schema: str) -> None:
        super().__init__()
        self._name: Final = f'"{schema}"'

    def __missing__(self, sql: str) -> str:
        self[sql] = sql.replace("sitq.", f"{self._name}.").replace('"sitq"', self._name)
        return self[sql]


# The time that a statement uses as now.
MOMENT: Final = "coalesce($1::timestamptz, statement_timestamp())"

# When a final task is pruned. The retention is clamped, since a row may have been written by hand.
_DELETE_AT: Final = """
    moment.now + make_interval(secs => greatest(0, least(tasks.result_ttl, 315360000)))
"""

# The assignments that end an attempt.
_NO_LEASE: Final = """
    worker = NULL, lease_end = NULL, ticket = NULL, cancel_requested = false, progress = NULL
"""

# -- enqueue ---------------------------------------------------------------------------------

_NAMES: Final = ", ".join(INSERT_TYPES)
_BATCH: Final = ", ".join(
    f"${number}::{kind}[]" for number, kind in enumerate(INSERT_TYPES.values(), start=2)
)
_TOKEN: Final = f"${len(INSERT_TYPES) + 2}"
_CHANNELS: Final = f"${len(INSERT_TYPES) + 3}::text[]"

# Store all tasks of a batch, in its order, and notify the channels.
INSERT_BATCH: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now),
stored AS (
    INSERT INTO sitq.tasks (enqueued_at, {_NAMES})
    SELECT moment.now, {select_list(INSERT_TYPES, eta="coalesce(eta, moment.now)")}
    FROM moment, unnest({_BATCH}) WITH ORDINALITY AS batch ({_NAMES}, nr)
    ORDER BY nr)
SELECT pg_notify(channel, {_TOKEN}) FROM unnest({_CHANNELS}) AS channel
"""

# Store tasks of one function that are due at once and differ in id and payload only. The ids are
# one text: the driver looks at each entry of an array.
INSERT_ALIKE: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now),
stored AS (
    INSERT INTO sitq.tasks (id, queue, priority, eta, function, result_ttl, enqueued_at, payload)
    SELECT id, $3::text, $4::int2, moment.now, $5::text, $6::float8, moment.now, payload
    FROM moment, unnest(string_to_array($2::text, ' '), $7::bytea[]) WITH ORDINALITY
                 AS batch (id, payload, nr)
    ORDER BY nr)
SELECT pg_notify(channel, $8) FROM unnest($9::text[]) AS channel
"""

# Store one such task without a notification, as most calls of a busy producer do.
INSERT_ONE: Final = f"""
INSERT INTO sitq.tasks (id, queue, priority, eta, function, result_ttl, enqueued_at, payload)
VALUES ($2::text, $3::text, $4::int2, {MOMENT}, $5::text, $6::float8, {MOMENT}, $7::bytea)
"""

# The same, and notify a channel.
INSERT_ONE_AND_NOTIFY: Final = f"{INSERT_ONE}RETURNING pg_notify($9::text, $8::text)"

# Store a batch of tasks, some with unique keys; return the ids of the tasks that hold the keys, and
# how many earlier holders have expired.
INSERT_UNIQUE: Final = f"""
SELECT holders, expired,
       (SELECT count(*) FROM (SELECT pg_notify(channel, {_TOKEN})
                              FROM unnest({_CHANNELS}) AS channel
                              WHERE holders IS NOT NULL) AS notified)
FROM sitq.enqueue({MOMENT}, {_BATCH})
"""

# The same, unless an open transaction has stored one of the keys: then there are no holders.
TRY_INSERT_UNIQUE: Final = INSERT_UNIQUE.replace("sitq.enqueue", "sitq.try_enqueue")

# Which tasks of a batch exist.
EXISTING: Final = """
SELECT id FROM sitq.tasks WHERE id = ANY ($1::text[])
"""

# -- reserve ---------------------------------------------------------------------------------

# Reserve due tasks in order; see the migration.
RESERVE: Final = f"""
SELECT * FROM sitq.reserve({MOMENT}, $2::text, $3::text[], $4::int4, $5::float8, $6::int8)
"""

# The same from every queue with pending tasks: a seek in the index from each name to the next.
RESERVE_ALL: Final = f"""
SELECT * FROM sitq.reserve({MOMENT}, $2::text, ARRAY(
    WITH RECURSIVE names (queue) AS (
        (SELECT task.queue FROM sitq.tasks AS task WHERE task.status = 'pending'
         ORDER BY task.queue LIMIT 1)
        UNION ALL
        SELECT (SELECT task.queue FROM sitq.tasks AS task
                WHERE task.status = 'pending' AND task.queue > names.queue
                ORDER BY task.queue LIMIT 1)
        FROM names WHERE names.queue IS NOT NULL)
    SELECT names.queue FROM names WHERE names.queue IS NOT NULL
), $3::int4, $4::float8, $5::int8)
"""

# The moments that the driver can read.
_PYTHON_TIMES: Final = """
    timestamptz '0001-01-01 00:00:00+00' AND timestamptz '9999-12-31 23:59:59.999999+00'
"""

# What was reserved under a ticket. A moment that the driver cannot read comes as NULL.
RESERVED: Final = f"""
SELECT row_number() OVER (ORDER BY priority DESC, eta, seq) AS nr, id, function, queue, epoch,
       attempts, misses, crashes, CASE WHEN eta BETWEEN {_PYTHON_TIMES} THEN eta END,
       CASE WHEN enqueued_at BETWEEN {_PYTHON_TIMES} THEN enqueued_at END,
       timeout, retry, headers, payload, NULL::float8 AS wait
FROM sitq.tasks WHERE status = 'in_progress' AND ticket = $1::int8
"""

# Fail what was reserved under a ticket and cannot be read; ids may be any texts.
FAIL_UNREADABLE: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now)
UPDATE sitq.tasks SET status = 'failed', error = $4::text, traceback = NULL,
    finished_at = moment.now, delete_at = {_DELETE_AT}, {_NO_LEASE}
FROM moment
WHERE tasks.id = ANY ($2::text[]) AND tasks.ticket = $3::int8
"""

# -- finish ----------------------------------------------------------------------------------

# Where rows are found by their ids, "status" is not asked for: statistics that were made while no
# task ran would have the server read the whole index of those that run, for each of a batch.

# Store a batch of successes; a row whose epoch is not current is skipped.
SUCCEED: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now),
accepted AS (
    UPDATE sitq.tasks SET status = 'success', value = batch.value, error = NULL, traceback = NULL,
        finished_at = moment.now, delete_at = {_DELETE_AT}, {_NO_LEASE}
    FROM moment, unnest($2::text[], $3::int8[], $4::bytea[]) AS batch (id, epoch, value)
    WHERE tasks.id = batch.id AND tasks.lease_end IS NOT NULL AND tasks.epoch = batch.epoch
    RETURNING tasks.id, tasks.epoch, tasks.status),
notified AS (SELECT pg_notify(channel, $5) FROM unnest($6::text[]) AS channel)
SELECT id, epoch, status, (SELECT count(*) FROM notified) FROM accepted
"""

# Store a batch of outcomes of any kind. Each row is locked before it is read, so that a
# cancellation is either seen here or comes later. A row that another transaction has locked is
# skipped, and returned as held.
FINISH: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now),
mine AS (
    SELECT tasks.id, batch.value, batch.error, batch.traceback, batch.delay,
           tasks.attempts, tasks.worker, tasks.started_at,
           CASE WHEN batch.kind = 'retry' AND tasks.attempts >= tasks.max_attempts THEN 'failure'
                WHEN batch.kind IN ('retry', 'release', 'miss') AND tasks.cancel_requested
                THEN 'cancelled'
                ELSE batch.kind END AS kind
    FROM unnest($2::text[], $3::int8[], $4::text[], $5::bytea[], $6::text[], $7::text[],
                $8::float8[]) AS batch (id, epoch, kind, value, error, traceback, delay)
         JOIN sitq.tasks ON tasks.id = batch.id
    WHERE tasks.lease_end IS NOT NULL AND tasks.epoch = batch.epoch
    ORDER BY tasks.id FOR NO KEY UPDATE OF tasks SKIP LOCKED),
accepted AS (
    UPDATE sitq.tasks SET
        status = CASE mine.kind WHEN 'success' THEN 'success' WHEN 'failure' THEN 'failed'
                                WHEN 'cancelled' THEN 'cancelled' ELSE 'pending' END,
        value = CASE mine.kind WHEN 'success' THEN mine.value END,
        error = CASE WHEN mine.kind IN ('failure', 'retry') THEN mine.error
                     WHEN mine.kind IN ('release', 'miss') THEN tasks.error END,
        traceback = CASE WHEN mine.kind IN ('failure', 'retry') THEN mine.traceback
                         WHEN mine.kind IN ('release', 'miss') THEN tasks.traceback END,
        eta = CASE WHEN mine.kind IN ('retry', 'miss')
                   THEN moment.now + make_interval(secs => mine.delay) ELSE tasks.eta END,
        attempts = CASE WHEN mine.kind IN ('release', 'miss') THEN greatest(tasks.attempts - 1, 0)
                        ELSE tasks.attempts END,
        misses = CASE mine.kind WHEN 'miss' THEN least(tasks.misses, 1000000) + 1
                                ELSE tasks.misses END,
        finished_at = CASE WHEN mine.kind IN ('success', 'failure', 'cancelled')
                           THEN moment.now END,
        delete_at = CASE WHEN mine.kind IN ('success', 'failure', 'cancelled')
                         THEN {_DELETE_AT} END,
        {_NO_LEASE}
    FROM mine, moment WHERE tasks.id = mine.id
    RETURNING tasks.id, tasks.epoch, tasks.status),
failures AS (SELECT * FROM mine WHERE kind IN ('failure', 'retry')),
trimmed AS (
    DELETE FROM sitq.attempts USING (
        SELECT task_id, seq, row_number() OVER (PARTITION BY task_id ORDER BY seq DESC) AS age
        FROM sitq.attempts WHERE task_id IN (SELECT id FROM failures)) AS old
    WHERE attempts.task_id = old.task_id AND attempts.seq = old.seq AND old.age >= {KEPT_FAILURES}),
kept AS (
    INSERT INTO sitq.attempts (task_id, number, worker, started_at, ended_at, error, traceback)
    SELECT failures.id, failures.attempts, failures.worker,
           coalesce(failures.started_at, moment.now), moment.now, coalesce(failures.error, ''),
           failures.traceback
    FROM failures, moment),
notified AS (SELECT pg_notify(channel, $9) FROM unnest($10::text[]) AS channel)
SELECT id, epoch, status, (SELECT count(*) FROM notified) FROM accepted
UNION ALL
SELECT tasks.id, tasks.epoch, 'held', 0
FROM unnest($2::text[], $3::int8[]) AS batch (id, epoch) JOIN sitq.tasks ON tasks.id = batch.id
WHERE tasks.lease_end IS NOT NULL AND tasks.epoch = batch.epoch
  AND tasks.id NOT IN (SELECT id FROM mine)
"""

# The same, but wait for locked rows.
FINISH_ALL: Final = FINISH.replace(" SKIP LOCKED", "")

# The state of tasks, after a change whose answer was lost or that skipped them.
STATES: Final = """
SELECT id, epoch, status, error, cancel_requested FROM sitq.tasks WHERE id = ANY ($1::text[])
"""

# The same; an error if a transaction has changed one of them and may still commit.
SETTLED_STATES: Final = f"{STATES}ORDER BY id FOR SHARE NOWAIT"

# Cancel a pending task, or request it of a running one; return its earlier status. A task that
# another transaction has locked is skipped.
CANCEL: Final = f"""
WITH moment AS (SELECT {MOMENT} AS now),
found AS (SELECT id, status FROM sitq.tasks WHERE id = $2::text FOR NO KEY UPDATE SKIP LOCKED),
changed AS (
    UPDATE sitq.tasks SET
        status = CASE found.status WHEN 'pending' THEN 'cancelled' ELSE tasks.status END,
        cancel_requested = found.status = 'in_progress',
        key_released = tasks.key_released OR found.status = 'in_progress',
        error = CASE found.status WHEN 'pending' THEN NULL ELSE tasks.error END,
        traceback = CASE found.status WHEN 'pending' THEN NULL ELSE tasks.traceback END,
        finished_at = CASE found.status WHEN 'pending' THEN moment.now END,
        delete_at = CASE found.status WHEN 'pending' THEN {_DELETE_AT} END
    FROM found, moment
    WHERE tasks.id = found.id AND found.status IN ('pending', 'in_progress'))
SELECT status FROM found
"""

# -- leases ----------------------------------------------------------------------------------

# Renew the leases of a batch whose epoch is current; return whether cancellation is requested. A
# task that another transaction has locked is skipped.
RENEW: Final = f"""
WITH mine AS (
    SELECT tasks.id, batch.epoch
    FROM unnest($2::text[], $3::int8[]) AS batch (id, epoch)
         JOIN sitq.tasks ON tasks.id = batch.id
    WHERE tasks.lease_end IS NOT NULL AND tasks.epoch = batch.epoch
    ORDER BY tasks.id FOR NO KEY UPDATE OF tasks SKIP LOCKED)
UPDATE sitq.tasks SET lease_end = {MOMENT} + make_interval(secs => $4::float8)
FROM mine WHERE tasks.id = mine.id
RETURNING tasks.id, mine.epoch, tasks.cancel_requested
"""

# Store the progress of an attempt, unless another transaction has locked its task.
SET_PROGRESS: Final = """
WITH mine AS (
    SELECT id FROM sitq.tasks WHERE id = $1::text AND lease_end IS NOT NULL AND epoch = $2::int8
    FOR NO KEY UPDATE SKIP LOCKED)
UPDATE sitq.tasks SET progress = $3::text FROM mine WHERE tasks.id = mine.id RETURNING tasks.id
"""

# -- sweep -----------------------------------------------------------------------------------

# Take back, expire, prune what was due so many seconds ago; see the migration.
SWEEP: Final = f"""
SELECT * FROM sitq.sweep(
    {MOMENT} - make_interval(secs => $5::float8), $2::int4, $3::int4, $4::text)
"""

# Delete final tasks that ended before a given time, whatever their retention.
PRUNE_OLDER: Final = f"""
WITH old AS (
    SELECT id FROM sitq.tasks
    WHERE finished_at IS NOT NULL AND finished_at <= {MOMENT} - make_interval(secs => $2::float8)
    ORDER BY finished_at, seq LIMIT $3::int4 FOR UPDATE SKIP LOCKED),
cleared AS (DELETE FROM sitq.attempts USING old WHERE attempts.task_id = old.id)
DELETE FROM sitq.tasks USING old WHERE tasks.id = old.id RETURNING tasks.id
"""

# -- look ups --------------------------------------------------------------------------------

# The columns of a `TaskInfo`.
INFOS: Final = f"""
SELECT {select_list(INFO_FIELDS, task_id="id")} FROM sitq.tasks WHERE id = ANY ($1::text[])
"""

# The results of tasks; only the id is used of those that are not final.
RESULTS: Final = f"""
SELECT {select_list(RESULT_FIELDS, task_id="id")} FROM sitq.tasks WHERE id = ANY ($1::text[])
"""

# A task as it was enqueued.
STORED: Final = f"""
SELECT {select_list(TASK_FIELDS)} FROM sitq.tasks WHERE id = $1::text
"""

# -- wake-ups --------------------------------------------------------------------------------

# Notify the channels, without waiting for the disk at the commit.
NOTIFY: Final = """
SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, $1)
FROM unnest($2::text[]) AS channel
"""

# A text that changes whenever a transaction that writes has begun or ended.
SNAPSHOT: Final = """
SELECT pg_current_snapshot()::text
"""

# -- connections -----------------------------------------------------------------------------

# The server's process and the search path of this connection. As the first statement, it relies on
# no search path.
WHOAMI: Final = """
SELECT pid, backend_start, pg_catalog.current_setting('search_path')
FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
"""

# End a process of the server whose connection was lost, so that it commits nothing any more.
END_PROCESS: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1::int4 AND backend_start = $2::timestamptz
"""

# -- transactions of the user's own ----------------------------------------------------------

# Set the search path that the statements of this module need, and return the user's. As the user's
# is in force until then, every name is qualified.
PIN_SEARCH_PATH: Final = """
SELECT pg_catalog.current_setting('search_path'),
       pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)
"""

# Restore the user's search path.
RESTORE_SEARCH_PATH: Final = """
SELECT pg_catalog.set_config('search_path', $1, true)
"""

# Whether there is a store of this name where a connection leads to; and values of the types whose
# codecs a user may have replaced.
IS_THERE: Final = """
SELECT to_regclass(quote_ident($1::text) || '.migrations') IS NOT NULL,
    $1::text, 'epoch'::timestamptz, 1::bigint, decode('73', 'hex')
"""

# Where and when the store was made: no other one has been made at the same microsecond.
BIRTH: Final = """
SELECT current_database()::text, number, applied_at FROM sitq.migrations ORDER BY number LIMIT 1
"""
