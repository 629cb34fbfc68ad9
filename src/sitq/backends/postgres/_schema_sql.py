"""The named statements by which a schema is recognised, made and brought up to date.

As in `sitq.backends.postgres._sql`, the schema is written as ``sitq``.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CREATE_RECORD",
    "CREATE_SCHEMA",
    "LOCK_MIGRATIONS",
    "PRESENT",
    "RECORD_MIGRATION",
    "VERSION",
]

# Whether the schema and sitq's tables in it are there, and whether anything else is.
PRESENT: Final = """
SELECT to_regnamespace(quote_ident($1)) IS NOT NULL,
       (SELECT array_agg(relname::text) FROM pg_class
        WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relkind IN ('r', 'p', 'v'))
"""

# The number of the last migration.
VERSION: Final = """
SELECT max(number) FROM sitq.migrations
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
CREATE TABLE IF NOT EXISTS sitq.migrations (
    number     integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT statement_timestamp()
)
"""

# Record a migration.
RECORD_MIGRATION: Final = """
INSERT INTO sitq.migrations (number) VALUES ($1)
"""
