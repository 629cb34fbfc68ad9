-- What people run a queue with: pauses, workers, failed attempts, retries.

-- The id of the task that repeats this one.
ALTER TABLE sitq.tasks ADD COLUMN retried_as text;

-- The final tasks that did not succeed. One that succeeds is in no index of its own: it has a value.
CREATE INDEX tasks_unsuccessful ON sitq.tasks (status, id)
WHERE finished_at IS NOT NULL AND value IS NULL;

-- The last failed attempts of each task, in the order of "seq".
CREATE TABLE sitq.attempts (
    task_id    text COLLATE "C" NOT NULL,
    seq        bigint           GENERATED ALWAYS AS IDENTITY,
    number     integer          NOT NULL,
    worker     text,
    started_at timestamptz      NOT NULL,
    ended_at   timestamptz      NOT NULL,
    error      text             NOT NULL,
    traceback  text,
    PRIMARY KEY (task_id, seq)
);

-- Queues whose tasks are not handed over, until a moment or for ever.
CREATE TABLE sitq.pauses (
    queue     text COLLATE "C" PRIMARY KEY,
    reason    text        NOT NULL,
    paused_by text        NOT NULL,
    paused_at timestamptz NOT NULL,
    until     timestamptz
);

-- What each worker reported last, and what it was asked to be.
CREATE TABLE sitq.workers (
    id         text COLLATE "C"  PRIMARY KEY,
    host       text COLLATE "C"  NOT NULL,
    pid        bigint            NOT NULL,
    version    text              NOT NULL,
    queues     text[]            NOT NULL,
    functions  text[]            NOT NULL,
    slots      integer           NOT NULL,
    running    integer           NOT NULL,
    state      text              NOT NULL,
    lease      double precision  NOT NULL,
    started_at timestamptz       NOT NULL,
    seen_at    timestamptz       NOT NULL,
    ordered    text              NOT NULL DEFAULT 'active'
);

-- Roles that may delete tasks are those of workers: they keep attempts, obey pauses and report themselves.
DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN
        SELECT DISTINCT quote_ident(role.rolname)
        FROM pg_class AS class, aclexplode(class.relacl) AS right_of
             JOIN pg_roles AS role ON role.oid = right_of.grantee
        WHERE class.oid = 'sitq.tasks'::regclass AND right_of.privilege_type = 'DELETE'
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON sitq.attempts TO %s', worker);
        EXECUTE format('GRANT SELECT ON sitq.pauses TO %s', worker);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON sitq.workers TO %s', worker);
    END LOOP;
END
$$;

-- Delete all but the last attempts of some tasks.
CREATE FUNCTION sitq.trim_attempts(ids text[], kept integer) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM sitq.attempts USING (
        SELECT task_id, seq, row_number() OVER (PARTITION BY task_id ORDER BY seq DESC) AS age
        FROM sitq.attempts WHERE task_id = ANY (ids)) AS old
    WHERE attempts.task_id = old.task_id AND attempts.seq = old.seq AND old.age > kept
$$;

-- Return where the next pending tasks after a place are, at most so many: level by level (each a queue
-- and a priority), by queue and in the order of reservation; see "reserve". Those of a level are after
-- "after_eta" and "after_seq", up to "last_eta" and "last_seq"; "total" is how many there are so far.
-- "side" says whether only those that are due, or only those that are not, are wanted. After 2,000 levels,
-- a last row without tasks has the place of the next level.
CREATE FUNCTION sitq.pending(
    moment timestamptz, only_queue text, side text, start_queue text, start_priority integer,
    start_eta timestamptz, start_seq bigint, most integer
) RETURNS TABLE (
    nr integer, total bigint, queue text, priority smallint, after_eta timestamptz,
    after_seq bigint, last_eta timestamptz, last_seq bigint
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    here text := coalesce(only_queue, start_queue);
    level integer := start_priority;
    place_eta timestamptz := start_eta;
    place_seq bigint := start_seq;
    first_eta timestamptz := CASE side WHEN 'scheduled' THEN moment ELSE '-infinity' END;
    end_eta timestamptz := CASE side WHEN 'due' THEN moment ELSE 'infinity' END;
    sum bigint := 0;
    found_rows bigint;
BEGIN
    FOR levels IN 1 .. 2000 LOOP
        IF place_eta IS NOT NULL THEN
            IF side = 'scheduled' AND place_eta < first_eta THEN
                place_eta := first_eta;
                place_seq := 9223372036854775807;
            END IF;
            SELECT count(*) INTO found_rows FROM (
                SELECT FROM sitq.tasks AS task
                WHERE task.status = 'pending' AND task.queue = here AND task.priority = level
                  AND (task.eta, task.seq) > (place_eta, place_seq) AND task.eta <= end_eta
                LIMIT most - sum) AS one;
            sum := sum + found_rows;
            nr := levels;
            total := sum;
            queue := here;
            priority := level;
            after_eta := place_eta;
            after_seq := place_seq;
            last_eta := end_eta;
            last_seq := 9223372036854775807;
            IF sum >= most THEN
                SELECT task.eta, task.seq INTO last_eta, last_seq FROM sitq.tasks AS task
                WHERE task.status = 'pending' AND task.queue = here AND task.priority = level
                  AND (task.eta, task.seq) > (place_eta, place_seq) AND task.eta <= end_eta
                ORDER BY task.eta, task.seq OFFSET found_rows - 1 LIMIT 1;
            END IF;
            IF found_rows > 0 THEN
                RETURN NEXT;
            END IF;
            EXIT WHEN sum >= most;
        END IF;
        SELECT next.queue, next.priority INTO here, level FROM (
            (SELECT 1 AS rank, task.queue, task.priority FROM sitq.tasks AS task
             WHERE task.status = 'pending' AND task.queue = here AND task.priority < level
             ORDER BY task.priority DESC LIMIT 1)
            UNION ALL
            (SELECT 2 AS rank, task.queue, task.priority FROM sitq.tasks AS task
             WHERE task.status = 'pending' AND task.queue > here AND only_queue IS NULL
             ORDER BY task.queue, task.priority DESC LIMIT 1)) AS next
        ORDER BY next.rank LIMIT 1;
        EXIT WHEN NOT FOUND;
        place_eta := '-infinity';
        place_seq := -9223372036854775808;
        IF levels = 2000 THEN
            nr := levels + 1;
            total := most;
            queue := here;
            priority := level;
            after_eta := timestamptz '0001-01-01 00:00:00+00';
            after_seq := place_seq;
            last_eta := place_eta;
            last_seq := place_seq;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- Store tasks that each repeat a final one, as "enqueue" does. The answer has the ids that it returns,
-- and NULL where nothing was done; it is NULL if an open transaction holds a task or a key.
CREATE FUNCTION sitq.repeat(
    again boolean,
    moment timestamptz, ids text[], queues text[], priorities smallint[], etas timestamptz[],
    functions text[], limits integer[], timeouts double precision[], keys text[], untils text[],
    expiries timestamptz[], ttls double precision[], origins text[], policies text[],
    header_texts text[], payloads bytea[]
) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    stored text[] := array_fill(NULL::text, ARRAY[cardinality(ids)]);
    earlier text;
    holder text;
BEGIN
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT task.retried_as INTO earlier FROM sitq.tasks AS task
        WHERE task.id = origins[i] AND task.finished_at IS NOT NULL FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF earlier = ids[i] THEN -- by this very call, whose answer was lost
            stored[i] := earlier;
        ELSIF earlier IS NULL OR again THEN
            SELECT held.holders[1] INTO holder FROM sitq.enqueue(
                moment, ids[i:i], queues[i:i], priorities[i:i], etas[i:i], functions[i:i],
                limits[i:i], timeouts[i:i], keys[i:i], untils[i:i], expiries[i:i], ttls[i:i],
                origins[i:i], policies[i:i], header_texts[i:i], payloads[i:i]) AS held;
            stored[i] := holder;
            UPDATE sitq.tasks SET retried_as = holder WHERE tasks.id = origins[i];
        END IF;
    END LOOP;
    RETURN stored;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;

-- As before, and pass over paused queues.
CREATE OR REPLACE FUNCTION sitq.reserve(
    moment timestamptz, holder text, queues text[], most integer, seconds double precision,
    mark bigint
) RETURNS TABLE (
    nr bigint, id text, function text, queue text, epoch bigint, attempts integer, misses integer,
    crashes integer, eta timestamptz, enqueued_at timestamptz, timeout double precision,
    retry text, headers text, payload bytea, wait double precision
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    paused text[];
    served text[] := queues;
BEGIN
    -- A pause waits for the reservations that have not seen it; see the statement.
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('sitq.pauses', 0));
    paused := ARRAY(SELECT pause.queue FROM sitq.pauses AS pause
                    WHERE pause.until IS NULL OR pause.until > moment);
    IF cardinality(paused) > 0 THEN
        served := ARRAY(SELECT name FROM unnest(queues) AS name WHERE name <> ALL (paused));
    END IF;
    LOOP
        SELECT top.priority, array_agg(top.name), array_agg(top.eta), array_agg(top.seq)
        INTO level, names, etas, seqs
        FROM (
            SELECT name, one.priority, one.eta, one.seq
            FROM unnest(served) AS name, LATERAL (
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
        FROM unnest(served) AS name, unnest(levels) AS floor, LATERAL (
            SELECT task.eta FROM sitq.tasks AS task
            WHERE task.status = 'pending' AND task.queue = name AND task.priority = floor
              AND (task.expires_at IS NULL OR task.expires_at > moment)
            ORDER BY task.eta LIMIT 1) AS first;
    END IF;
    IF cardinality(paused) > 0 THEN
        -- Tasks of a queue are due from the end of its pause on.
        SELECT least(next_eta, min(greatest(pause.until, first.eta))) INTO next_eta
        FROM sitq.pauses AS pause, LATERAL (
            SELECT min(task.eta) AS eta FROM sitq.tasks AS task
            WHERE task.status = 'pending' AND task.queue = pause.queue
              AND (task.expires_at IS NULL OR task.expires_at > moment)) AS first
        WHERE pause.until > moment AND pause.queue = ANY (queues) AND first.eta IS NOT NULL;
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

-- As before, and keep the attempts of lost workers, delete those of tasks that are pruned, and forget
-- workers that have not reported for an hour.
CREATE OR REPLACE FUNCTION sitq.sweep(moment timestamptz, most_crashes integer, most integer, lost text)
RETURNS TABLE (reclaimed bigint, expired bigint, pruned bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended text[];
BEGIN
    ended := ARRAY(
        SELECT leased.id FROM sitq.tasks AS leased
        WHERE leased.status = 'in_progress' AND leased.lease_end <= moment
        ORDER BY leased.lease_end, leased.seq LIMIT most
        FOR UPDATE SKIP LOCKED);
    IF cardinality(ended) > 0 THEN
        INSERT INTO sitq.attempts (task_id, number, worker, started_at, ended_at, error)
        SELECT task.id, task.attempts, task.worker, coalesce(task.started_at, moment), moment,
               'LeaseLostError: the worker died or hung before it reported'
        FROM sitq.tasks AS task WHERE task.id = ANY (ended);
        PERFORM sitq.trim_attempts(ended, 10);
    END IF;
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
        FROM sitq.tasks AS leased WHERE leased.id = ANY (ended)) AS gone
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
    WITH gone AS (
        DELETE FROM sitq.tasks AS task
        USING (
            SELECT done.id FROM sitq.tasks AS done
            WHERE done.finished_at IS NOT NULL AND done.delete_at <= moment
            ORDER BY done.delete_at, done.seq LIMIT most
            FOR UPDATE SKIP LOCKED) AS old
        WHERE task.id = old.id
        RETURNING task.id),
    cleared AS (DELETE FROM sitq.attempts USING gone WHERE attempts.task_id = gone.id)
    SELECT count(*) INTO pruned FROM gone;
    DELETE FROM sitq.workers AS worker WHERE worker.seen_at < moment - interval '1 hour';
    RETURN NEXT;
END
$$;
