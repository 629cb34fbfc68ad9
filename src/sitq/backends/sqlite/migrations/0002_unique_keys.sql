-- Who holds a unique key: a task that is not final, unless its key was released before its end.
-- "unique_until" is NULL or 'start': from its first start on, such a task holds no key any more.
ALTER TABLE tasks ADD COLUMN unique_until TEXT;
-- 1 once the key was taken from a task that is not final: it was asked to end, or can never start.
ALTER TABLE tasks ADD COLUMN key_released INTEGER NOT NULL DEFAULT 0;

-- In tasks that run and were asked to end already.
UPDATE tasks SET key_released = 1
WHERE status = 'in_progress' AND unique_key IS NOT NULL
  AND seq IN (SELECT seq FROM leases WHERE cancelled = 1);

-- One task per unique key that holds it.
DROP INDEX tasks_unique;
CREATE UNIQUE INDEX tasks_unique ON tasks (unique_key)
WHERE unique_key IS NOT NULL AND finished_at IS NULL AND key_released = 0
  AND (unique_until IS NULL OR epoch = 0);
