-- Tasks, from being enqueued to the end of their retention. Times are microseconds since 1970, UTC.
-- Large columns come last, so that the small ones are read without their overflow pages.
CREATE TABLE tasks (
    seq          INTEGER PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE,
    status       TEXT    NOT NULL DEFAULT 'pending',
    queue        TEXT    NOT NULL,
    priority     INTEGER NOT NULL CHECK (priority BETWEEN -100 AND 100),
    eta          INTEGER NOT NULL,
    function     TEXT    NOT NULL,
    epoch        INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 0,
    crashes      INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    misses       INTEGER NOT NULL DEFAULT 0 CHECK (misses >= 0),
    max_attempts INTEGER,
    timeout      REAL,
    unique_key   TEXT,
    expires_at   INTEGER,
    result_ttl   INTEGER NOT NULL,
    enqueued_at  INTEGER NOT NULL,
    started_at   INTEGER,
    finished_at  INTEGER,
    delete_at    INTEGER,
    retry_of     TEXT,
    retry        TEXT,
    headers      TEXT,
    payload      BLOB    NOT NULL,
    value        BLOB,
    error        TEXT,
    traceback    TEXT,
    -- No list for IN: of more than two values SQLite makes a table, for each row that is written.
    CHECK (CASE status
        WHEN 'pending'     THEN finished_at IS NULL AND value IS NULL
        WHEN 'in_progress' THEN finished_at IS NULL AND value IS NULL
        WHEN 'success'     THEN finished_at IS NOT NULL AND value IS NOT NULL
        WHEN 'failed'      THEN finished_at IS NOT NULL AND value IS NULL
        WHEN 'cancelled'   THEN finished_at IS NOT NULL AND value IS NULL
        WHEN 'expired'     THEN finished_at IS NOT NULL AND value IS NULL
        ELSE false END),
    CHECK ((finished_at IS NULL) = (delete_at IS NULL)),
    CHECK (attempts BETWEEN 0 AND epoch),
    CHECK (max_attempts IS NULL OR attempts <= max_attempts)
) STRICT;

-- What may be reserved, in the order of reservation.
CREATE INDEX tasks_due ON tasks (queue, priority DESC, eta) WHERE status = 'pending';
-- What may expire.
CREATE INDEX tasks_expiring ON tasks (expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL;
-- What may be pruned.
CREATE INDEX tasks_done ON tasks (delete_at, finished_at) WHERE finished_at IS NOT NULL;
-- One task that is not final per unique key.
CREATE UNIQUE INDEX tasks_unique ON tasks (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;

-- One row per task in progress. Apart from the tasks, so that a heartbeat rewrites no payload.
CREATE TABLE leases (
    seq       INTEGER PRIMARY KEY REFERENCES tasks (seq),
    epoch     INTEGER NOT NULL,
    worker    TEXT    NOT NULL,
    ends_at   INTEGER NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0 CHECK (cancelled IN (0, 1)),
    progress  TEXT
) STRICT;

CREATE INDEX leases_end ON leases (ends_at);
