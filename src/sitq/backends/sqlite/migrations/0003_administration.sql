-- What people run a queue with: pauses, workers, failed attempts, retries.

-- The id of the task that repeats this one.
ALTER TABLE tasks ADD COLUMN retried_as TEXT;

-- The final tasks that did not succeed. One that succeeds is in no index of its own: it has a value.
CREATE INDEX tasks_unsuccessful ON tasks (status, id) WHERE finished_at IS NOT NULL AND value IS NULL;

-- The last failed attempts of each task, in the order of their rowids.
CREATE TABLE attempts (
    seq        INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    worker     TEXT,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    error      TEXT NOT NULL,
    traceback  TEXT
) STRICT;
CREATE INDEX attempts_of_task ON attempts (seq);
-- A number of a task may be used again once the task is gone.
CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks
WHEN EXISTS (SELECT 1 FROM attempts WHERE seq = OLD.seq)
BEGIN
    DELETE FROM attempts WHERE seq = OLD.seq;
END;

-- Queues whose tasks are not handed over, until a moment or for ever.
CREATE TABLE pauses (
    queue     TEXT PRIMARY KEY,
    reason    TEXT NOT NULL,
    paused_by TEXT NOT NULL,
    paused_at INTEGER NOT NULL,
    until     INTEGER
) STRICT, WITHOUT ROWID;

-- What each worker reported last, and what it was asked to be.
CREATE TABLE workers (
    id         TEXT PRIMARY KEY,
    host       TEXT    NOT NULL,
    pid        INTEGER NOT NULL,
    version    TEXT    NOT NULL,
    queues     TEXT    NOT NULL,
    functions  TEXT    NOT NULL,
    slots      INTEGER NOT NULL,
    running    INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    lease      REAL    NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    ordered    TEXT    NOT NULL DEFAULT 'active'
) STRICT, WITHOUT ROWID;
