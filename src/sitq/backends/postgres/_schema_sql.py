"""The named statements by which a schema is recognised, made and brought up to date.

As in `sitq.backends.postgres._sql`, the schema is written as ``sitq``.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CREATE_RECORD",
    "CREATE_SCHEMA",
    "ENCODING",
    "LOCK_MIGRATIONS",
    "MADE",
    "PRESENT",
    "RECORD_MIGRATION",
]

# What texts are stored as.
ENCODING: Final = """
SELECT current_setting('server_encoding')
"""

# Whether the schema is there, and anything in it: what is in a schema depends on it. Then which
# parts of a store are: the record of its migrations, its tasks, its functions.
PRESENT: Final = """
SELECT place.space IS NOT NULL,
       EXISTS (SELECT FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass
               AND refobjid = place.space AND deptype = 'n')
       OR EXISTS (SELECT FROM pg_class WHERE relnamespace = place.space),
       (SELECT count(*) FROM pg_attribute WHERE attrelid = place.record
        AND (attname, atttypid) IN (('number', 'int4'::regtype),
                                    ('applied_at', 'timestamptz'::regtype))) = 2,
       (SELECT count(*) FROM pg_attribute WHERE attrelid = place.tasks
        AND attname IN ('id', 'status', 'queue', 'epoch', 'unique_key', 'payload')) = 6,
       (SELECT count(DISTINCT proname) FROM pg_proc WHERE pronamespace = place.space
        AND proname IN ('enqueue', 'reserve', 'sweep')) = 3
FROM (SELECT to_regnamespace(quote_ident($1::text)) AS space,
             to_regclass(quote_ident($1::text) || '.migrations') AS record,
             to_regclass(quote_ident($1::text) || '.tasks') AS tasks) AS place
"""

# The numbers of the migrations that were made.
MADE: Final = """
SELECT array_agg(number ORDER BY number) FROM sitq.migrations
"""

# One migration at a time for one schema; held to the end of the transaction.
LOCK_MIGRATIONS: Final = """
SELECT pg_advisory_xact_lock(hashtextextended('sitq ' || $1, 0))
"""

# A place for the store.
CREATE_SCHEMA: Final = """
CREATE SCHEMA "sitq"
"""

# What the migrations are recorded in.
CREATE_RECORD: Final = """
CREATE TABLE sitq.migrations (
    number     integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT statement_timestamp()
)
"""

# Record a migration.
RECORD_MIGRATION: Final = """
INSERT INTO sitq.migrations (number) VALUES ($1)
"""
