-- Tasks, from being enqueued to the end of their retention. The schema is written as "sitq" here;
-- the backend puts the name in its place that it was given.
--
-- Where this differs from the SQLite store:
-- * One table. PostgreSQL writes a new version of a row whatever column changes, and reserving and
--   finishing change the task in any case: a second table for leases would double the writes, and
--   need two locks a task. Large payloads lie outside of the row and are not written again.
-- * Moments are of type timestamptz, which is as fine as SQLite's integers and easier to read.
-- * Text has the "C" collation where it is compared: the order of bytes, and the fastest.
-- * CHECKs are short: the server reads the text of each of them again in every statement.
-- * "ticket" finds a reservation again whose answer was lost with its connection.
CREATE TABLE sitq.tasks (
    seq              bigint           GENERATED ALWAYS AS IDENTITY,
    id               text COLLATE "C" PRIMARY KEY,
    status           text COLLATE "C" NOT NULL DEFAULT 'pending'
                     CHECK (status IN ('pending', 'in_progress', 'success', 'failed', 'cancelled', 'expired')),
    queue            text COLLATE "C" NOT NULL,
    priority         smallint         NOT NULL CHECK (abs(priority) <= 100),
    eta              timestamptz      NOT NULL,
    function         text             NOT NULL,
    epoch            bigint           NOT NULL DEFAULT 0,
    attempts         integer          NOT NULL DEFAULT 0,
    crashes          integer          NOT NULL DEFAULT 0,
    misses           integer          NOT NULL DEFAULT 0,
    max_attempts     integer,
    timeout          double precision,
    unique_key       text COLLATE "C",
    expires_at       timestamptz,
    result_ttl       double precision NOT NULL,
    enqueued_at      timestamptz      NOT NULL,
    started_at       timestamptz,
    finished_at      timestamptz,
    delete_at        timestamptz,
    worker           text,
    lease_end        timestamptz,
    ticket           bigint,
    cancel_requested boolean          NOT NULL DEFAULT false,
    progress         text,
    retry_of         text,
    retry            text,
    headers          text,
    payload          bytea            NOT NULL,
    value            bytea,
    error            text,
    traceback        text,
    CHECK ((status IN ('pending', 'in_progress')) = (finished_at IS NULL)),
    CHECK ((finished_at IS NULL) = (delete_at IS NULL)),
    CHECK ((status = 'success') = (value IS NOT NULL)),
    CHECK ((status = 'in_progress') = (lease_end IS NOT NULL)),
    CHECK (NOT cancel_requested OR lease_end IS NOT NULL),
    CHECK (attempts <= epoch),
    CHECK (attempts <= max_attempts), -- NULL: no limit
    CHECK (least(attempts, crashes, misses) >= 0)
) WITH (
    -- What makes a row wide goes out of it early.
    toast_tuple_target = 512,
    -- A task is written three times within moments: its dead versions are many, and cheap to clear
    -- away while they are in memory.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- What may be reserved, in the order of reservation.
CREATE INDEX tasks_due ON sitq.tasks (queue, priority DESC, eta, seq) WHERE status = 'pending';
-- What may be taken back.
CREATE INDEX tasks_leased ON sitq.tasks (lease_end) WHERE status = 'in_progress';
-- What may expire.
CREATE INDEX tasks_expiring ON sitq.tasks (expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL;
-- What may be pruned.
CREATE INDEX tasks_done ON sitq.tasks (delete_at, finished_at) WHERE finished_at IS NOT NULL;
-- One task that is not final per unique key.
CREATE UNIQUE INDEX tasks_unique ON sitq.tasks (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;

-- Whoever may insert tasks may number them, as "enqueue" does.
GRANT USAGE ON SEQUENCE sitq.tasks_seq_seq TO PUBLIC;

-- Store tasks of which some have unique keys, in order, and tell who has their places: a task
-- whose key is held by a task that is not final is not stored, and the holder's id comes instead.
--
-- Two calls wait for each other's keys in the order in which they insert: all insert in the order
-- of the keys, so that none waits for one that waits for it. The numbers follow the caller's order.
CREATE FUNCTION sitq.enqueue(
    moment timestamptz, ids text[], queues text[], priorities smallint[], etas timestamptz[],
    functions text[], limits integer[], timeouts double precision[], keys text[],
    expiries timestamptz[], ttls double precision[], origins text[], policies text[],
    header_texts text[], payloads bytea[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    numbers bigint[] := ARRAY(
        SELECT nextval('sitq.tasks_seq_seq') FROM generate_series(1, cardinality(ids)));
    holders text[] := array_fill(NULL::text, ARRAY[cardinality(ids)]);
    holder text;
    i integer;
BEGIN
    FOR i IN SELECT nr FROM generate_series(1, cardinality(ids)) AS nr
             ORDER BY keys[nr] COLLATE "C", nr LOOP
        LOOP
            INSERT INTO sitq.tasks (
                seq, id, queue, priority, eta, function, max_attempts, timeout, unique_key,
                expires_at, result_ttl, enqueued_at, retry_of, retry, headers, payload)
            OVERRIDING SYSTEM VALUE
            VALUES (
                numbers[i], ids[i], queues[i], priorities[i], coalesce(etas[i], moment), functions[i],
                limits[i], timeouts[i], keys[i], expiries[i], ttls[i], moment, origins[i],
                policies[i], header_texts[i], payloads[i])
            ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL
            DO NOTHING
            RETURNING tasks.id INTO holder;
            EXIT WHEN FOUND;
            SELECT tasks.id INTO holder FROM sitq.tasks
            WHERE tasks.unique_key = keys[i] AND tasks.finished_at IS NULL;
            EXIT WHEN FOUND;
            -- The holder has ended between the two statements: the key is free.
        END LOOP;
        holders[i] := holder;
    END LOOP;
    RETURN holders;
END
$$;

-- Reserve due tasks in order. Goes from priority to priority, each a seek in the index, so that
-- tasks that are not due yet are never scanned; locks one task more than wished for, to know if
-- any are left. The row without an id tells how long to wait for the next one, in seconds.
--
-- What was written by hand harms its own row only: a count that cannot grow any more fails its task
-- here, and a moment that clients cannot read, such as infinity, comes to them as NULL.
--
-- Before the first task that waits, the index holds what is left of those reserved since the last
-- vacuum: the look for the priority passes that, and the look for tasks begins where it ended.
CREATE FUNCTION sitq.reserve(
    moment timestamptz, holder text, queues text[], most integer, seconds double precision,
    mark bigint
) RETURNS TABLE (
    nr bigint, id text, function text, queue text, epoch bigint, attempts integer, misses integer,
    crashes integer, eta timestamptz, enqueued_at timestamptz, timeout double precision,
    retry text, headers text, payload bytea, wait double precision
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    picked text[] := '{}';
    here text[];
    odd boolean := false;
    here_odd boolean;
    level smallint := 32767;
    levels smallint[] := '{}';
    names text[];
    etas timestamptz[];
    seqs bigint[];
    next_eta timestamptz;
BEGIN
    LOOP
        SELECT top.priority, array_agg(top.name), array_agg(top.eta), array_agg(top.seq)
        INTO level, names, etas, seqs
        FROM (
            SELECT name, one.priority, one.eta, one.seq
            FROM unnest(queues) AS name, LATERAL (
                SELECT task.priority, task.eta, task.seq FROM sitq.tasks AS task
                WHERE task.status = 'pending' AND task.queue = name AND task.priority < level
                ORDER BY task.priority DESC, task.eta, task.seq LIMIT 1) AS one) AS top
        GROUP BY top.priority ORDER BY top.priority DESC LIMIT 1;
        EXIT WHEN NOT FOUND;
        levels := levels || level;
        SELECT array_agg(due.id), bool_or(due.odd) INTO here, here_odd FROM (
            SELECT one.id, one.odd
            FROM unnest(names, etas, seqs) AS start (name, eta, seq), LATERAL (
                SELECT task.id, task.eta, task.seq,
                       task.attempts >= least(task.max_attempts, 2000000000)
                       OR task.epoch >= 9000000000000000000 AS odd
                FROM sitq.tasks AS task
                WHERE task.status = 'pending' AND task.queue = start.name
                  AND task.priority = level AND (task.eta, task.seq) >= (start.eta, start.seq)
                  AND task.eta <= moment AND (task.expires_at IS NULL OR task.expires_at > moment)
                ORDER BY task.eta, task.seq LIMIT most + 1 - cardinality(picked)
                FOR UPDATE SKIP LOCKED) AS one
            ORDER BY one.eta, one.seq LIMIT most + 1 - cardinality(picked)) AS due;
        picked := picked || here;
        odd := odd OR coalesce(here_odd, false);
        EXIT WHEN cardinality(picked) > most;
    END LOOP;
    IF odd THEN
        -- Written by hand: it can never start, and must not stand in the way of the others.
        UPDATE sitq.tasks AS task
        SET status = 'failed', finished_at = moment, delete_at = moment + interval '7 days',
            error = 'BackendFormatError: this task has no attempt left, and has not ended'
        WHERE task.id = ANY (picked)
          AND (task.attempts >= least(task.max_attempts, 2000000000)
               OR task.epoch >= 9000000000000000000);
    END IF;
    RETURN QUERY
    UPDATE sitq.tasks AS task
    SET status = 'in_progress', epoch = task.epoch + 1, attempts = task.attempts + 1,
        started_at = moment, lease_end = moment + make_interval(secs => seconds), worker = holder,
        ticket = mark
    FROM unnest(picked[1:most]) WITH ORDINALITY AS mine (id, nr)
    WHERE task.id = mine.id AND task.finished_at IS NULL
    RETURNING mine.nr, task.id, task.function, task.queue, task.epoch, task.attempts, task.misses,
              task.crashes,
              CASE WHEN task.eta BETWEEN timestamptz '0001-01-01 00:00:00+00'
                             AND timestamptz '9999-12-31 23:59:59.999999+00' THEN task.eta END,
              CASE WHEN task.enqueued_at BETWEEN timestamptz '0001-01-01 00:00:00+00'
                             AND timestamptz '9999-12-31 23:59:59.999999+00' THEN task.enqueued_at END,
              task.timeout, task.retry, task.headers, task.payload, NULL::double precision;
    IF cardinality(picked) > most THEN
        next_eta := moment;
    ELSE
        SELECT min(first.eta) INTO next_eta
        FROM unnest(queues) AS name, unnest(levels) AS floor, LATERAL (
            SELECT task.eta FROM sitq.tasks AS task
            WHERE task.status = 'pending' AND task.queue = name AND task.priority = floor
              AND (task.expires_at IS NULL OR task.expires_at > moment)
            ORDER BY task.eta LIMIT 1) AS first;
    END IF;
    IF next_eta <= moment AND cardinality(picked) = 0 AND most > 0 THEN
        -- Others have them in their hands at this very moment.
        next_eta := moment + interval '5 milliseconds';
    END IF;
    nr := 0;
    -- The difference of what is infinite can be had from no server before 17.
    IF next_eta IS NOT NULL THEN
        next_eta := greatest(least(next_eta, timestamptz '9999-12-31 23:59:59.999999+00'), moment);
        wait := extract(epoch FROM next_eta - moment);
    END IF;
    RETURN NEXT;
END
$$;

-- Do what time has made due: take back, expire, prune; at most so many of each, oldest first.
CREATE FUNCTION sitq.sweep(moment timestamptz, most_crashes integer, most integer, lost text)
RETURNS TABLE (reclaimed bigint, expired bigint, pruned bigint)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sitq.tasks AS task
    SET attempts = greatest(task.attempts - 1, 0),
        crashes = least(task.crashes, 1000000) + 1,
        status = gone.status,
        error = CASE gone.status WHEN 'cancelled' THEN NULL
                                 WHEN 'failed' THEN format(lost, least(task.crashes, 1000000) + 1)
                                 ELSE task.error END,
        traceback = CASE gone.status WHEN 'pending' THEN task.traceback END,
        finished_at = CASE WHEN gone.status <> 'pending' THEN moment END,
        delete_at = CASE WHEN gone.status <> 'pending' THEN moment + make_interval(
            secs => greatest(0, least(task.result_ttl, 315360000))) END,
        worker = NULL, lease_end = NULL, ticket = NULL, cancel_requested = false, progress = NULL
    FROM (
        SELECT leased.id, CASE WHEN leased.cancel_requested THEN 'cancelled'
                               WHEN leased.crashes >= most_crashes - 1 THEN 'failed'
                               ELSE 'pending' END AS status
        FROM sitq.tasks AS leased
        WHERE leased.status = 'in_progress' AND leased.lease_end <= moment
        ORDER BY leased.lease_end, leased.seq LIMIT most
        FOR UPDATE SKIP LOCKED) AS gone
    WHERE task.id = gone.id;
    GET DIAGNOSTICS reclaimed = ROW_COUNT;
    UPDATE sitq.tasks AS task
    SET status = 'expired', error = NULL, traceback = NULL, finished_at = moment,
        delete_at = moment + make_interval(secs => greatest(0, least(task.result_ttl, 315360000)))
    FROM (
        SELECT waiting.id FROM sitq.tasks AS waiting
        WHERE waiting.status = 'pending' AND waiting.expires_at IS NOT NULL
          AND waiting.expires_at <= moment
        ORDER BY waiting.expires_at, waiting.seq LIMIT most
        FOR UPDATE SKIP LOCKED) AS late
    WHERE task.id = late.id;
    GET DIAGNOSTICS expired = ROW_COUNT;
    DELETE FROM sitq.tasks AS task
    USING (
        SELECT done.id FROM sitq.tasks AS done
        WHERE done.finished_at IS NOT NULL AND done.delete_at <= moment
        ORDER BY done.delete_at, done.seq LIMIT most
        FOR UPDATE SKIP LOCKED) AS old
    WHERE task.id = old.id;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN NEXT;
END
$$;
