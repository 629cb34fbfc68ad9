-- Who holds a unique key: a task that is not final, unless its key was released before its end.
-- "unique_until" is NULL or 'start': from its first start on, such a task holds no key any more.
-- "key_released" is true once the key was taken from a task that is not final: it was asked to end,
-- or can never start.
ALTER TABLE sitq.tasks
    ADD COLUMN unique_until text,
    ADD COLUMN key_released boolean NOT NULL DEFAULT false;

-- In tasks that run and were asked to end already.
UPDATE sitq.tasks SET key_released = true WHERE cancel_requested AND unique_key IS NOT NULL;

-- One task per unique key that holds it.
DROP INDEX sitq.tasks_unique;
CREATE UNIQUE INDEX tasks_unique ON sitq.tasks (unique_key)
WHERE unique_key IS NOT NULL AND finished_at IS NULL AND NOT key_released
  AND (unique_until IS NULL OR epoch = 0);

-- Store tasks of which some have unique keys, in order, and tell who has their places: a task
-- whose key another task holds is not stored, and the holder's id comes instead. A holder that can
-- never start is expired, or gives up its key: if it was put off beyond its expiry, or its worker, whose
-- lease ended, may still report. "expired" counts the first.
--
-- Two calls wait for each other's keys in the order in which they insert: all insert in the order
-- of the keys, so that none waits for one that waits for it. The numbers follow the caller's order.
DROP FUNCTION sitq.enqueue;
CREATE FUNCTION sitq.enqueue(
    moment timestamptz, ids text[], queues text[], priorities smallint[], etas timestamptz[],
    functions text[], limits integer[], timeouts double precision[], keys text[], untils text[],
    expiries timestamptz[], ttls double precision[], origins text[], policies text[],
    header_texts text[], payloads bytea[], OUT holders text[], OUT expired integer
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    numbers bigint[] := ARRAY(
        SELECT nextval('sitq.tasks_seq_seq') FROM generate_series(1, cardinality(ids)));
    holder text;
    is_stale boolean;
    i integer;
BEGIN
    holders := array_fill(NULL::text, ARRAY[cardinality(ids)]);
    expired := 0;
    FOR i IN SELECT nr FROM generate_series(1, cardinality(ids)) AS nr
             ORDER BY keys[nr] COLLATE "C", nr LOOP
        LOOP
            INSERT INTO sitq.tasks (
                seq, id, queue, priority, eta, function, max_attempts, timeout, unique_key,
                unique_until, expires_at, result_ttl, enqueued_at, retry_of, retry, headers, payload)
            OVERRIDING SYSTEM VALUE
            VALUES (
                numbers[i], ids[i], queues[i], priorities[i], coalesce(etas[i], moment), functions[i],
                limits[i], timeouts[i], keys[i], untils[i], expiries[i], ttls[i], moment, origins[i],
                policies[i], header_texts[i], payloads[i])
            ON CONFLICT (unique_key)
            WHERE unique_key IS NOT NULL AND finished_at IS NULL AND NOT key_released
              AND (unique_until IS NULL OR epoch = 0)
            DO NOTHING
            RETURNING tasks.id INTO holder;
            EXIT WHEN FOUND;
            SELECT task.id, task.id <> ids[i]
                            AND task.expires_at <= greatest(coalesce(task.lease_end, task.eta), moment)
                            AND coalesce(task.lease_end, moment) <= moment
            INTO holder, is_stale FROM sitq.tasks AS task
            WHERE task.unique_key = keys[i] AND task.finished_at IS NULL AND NOT task.key_released
              AND (task.unique_until IS NULL OR task.epoch = 0);
            EXIT WHEN FOUND AND is_stale IS NOT TRUE;
            IF FOUND THEN
                UPDATE sitq.tasks AS task
                SET status = 'expired', error = NULL, traceback = NULL, finished_at = moment,
                    delete_at = moment + make_interval(
                        secs => greatest(0, least(task.result_ttl, 315360000)))
                WHERE task.id = holder AND task.status = 'pending' AND task.expires_at <= moment;
                IF FOUND THEN
                    expired := expired + 1;
                ELSE
                    UPDATE sitq.tasks AS task SET key_released = true
                    WHERE task.id = holder AND task.finished_at IS NULL
                      AND task.expires_at <= greatest(coalesce(task.lease_end, task.eta), moment)
                      AND coalesce(task.lease_end, moment) <= moment;
                END IF;
            END IF;
            -- The key is free now, or the holder has ended between two statements.
        END LOOP;
        holders[i] := holder;
    END LOOP;
END
$$;

-- The same without waiting for long: "holders" is NULL, and nothing is stored, if an open transaction
-- has stored one of the keys. What waits in a transaction of the user's calls "enqueue" instead.
CREATE FUNCTION sitq.try_enqueue(
    moment timestamptz, ids text[], queues text[], priorities smallint[], etas timestamptz[],
    functions text[], limits integer[], timeouts double precision[], keys text[], untils text[],
    expiries timestamptz[], ttls double precision[], origins text[], policies text[],
    header_texts text[], payloads bytea[], OUT holders text[], OUT expired integer
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
BEGIN
    SELECT stored.holders, stored.expired INTO holders, expired
    FROM sitq.enqueue(moment, ids, queues, priorities, etas, functions, limits, timeouts, keys, untils,
                      expiries, ttls, origins, policies, header_texts, payloads) AS stored;
EXCEPTION WHEN lock_not_available THEN
    holders := NULL;
    expired := 0;
END
$$;

-- The functions name what they use from "pg_catalog" without its schema. Whoever may create functions
-- or operators in another schema of the caller's search path could offer one that fits the arguments
-- more exactly, and run code as the caller. So every function finds "pg_catalog" only. Temporary
-- objects come last: PostgreSQL would look for relations and types among them first.
ALTER FUNCTION sitq.reserve(timestamptz, text, text[], integer, double precision, bigint)
    SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION sitq.sweep(timestamptz, integer, integer, text) SET search_path = pg_catalog, pg_temp;
