"""Create, check and migrate the schema of a PostgreSQL store.

A migration and its record are committed together, by one process at a time. As in
`sitq.backends.postgres._sql`, statements name the schema ``sitq``, which is replaced.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from sitq.errors import BackendFormatError

__all__ = [
    "CREATE_RECORD",
    "CREATE_SCHEMA",
    "ENCODING",
    "LOCK_MIGRATIONS",
    "MADE",
    "PRESENT",
    "RECORD_MIGRATION",
    "Migration",
    "migrations",
    "prepare",
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


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.backends.postgres._connection import PgConnection, Row
    from sitq.backends.postgres._sql import Statements

    Ask = Callable[..., Awaitable[list[Row]]]

Migration = tuple[int, str]


@cache
def migrations() -> tuple[Migration, ...]:
    """Return number and script of each migration, in order."""
    folder = resources.files("sitq.backends.postgres") / "migrations"
    scripts = sorted(
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )
    return tuple((int(name.split("_")[0]), script) for name, script in scripts)


async def prepare(
    connection: PgConnection, statements: Statements, schema: str, place: str, *, migrate: bool
) -> None:
    """Make sure that the schema is one that this version can use.

    Raises:
        BackendFormatError: it belongs to another program, to a newer sitq, or has lost a part of
            the store; or it is missing or older, and must not be migrated; or the database is not
            one of UTF-8.
    """
    name = f"schema {schema!r} of {place}"

    async def ask(sql: str, *parameters: Any) -> list[Row]:
        return await connection.fetch(statements[sql], parameters)

    ((encoding,),) = await ask(ENCODING)
    if encoding != "UTF8":
        message = (
            f"the database of {place} stores texts as {encoding}, which cannot hold all of them: "
            "use one that was made with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
        raise BackendFormatError(message)
    version = await _version(ask, schema, name)
    if version == migrations()[-1][0]:
        return
    if not migrate:
        problem = f"has the old format {version}" if version else "is not there"
        message = (
            f"{name} {problem}, and migrate=False: have a role that may do it open it once "
            "with migrate=True"
        )
        raise BackendFormatError(message)
    async with connection.transaction():
        await ask(LOCK_MIGRATIONS, schema)
        # Another process may have migrated meanwhile.
        version = await _version(ask, schema, name)
        if version is None:
            await connection.run_script(statements[CREATE_SCHEMA])
        if not version:
            await connection.run_script(statements[CREATE_RECORD])
        for number, script in migrations():
            if number > (version or 0):
                await connection.run_script(statements[script])
                await ask(RECORD_MIGRATION, number)


async def _version(ask: Ask, schema: str, name: str) -> int | None:
    """Return the number of the last migration; 0: an empty schema, ``None``: there is none.

    A store is recognised by any two of its three parts.
    """
    ((exists, used, *parts),) = await ask(PRESENT, schema)
    if not used:
        return 0 if exists else None
    if sum(parts) < 2:  # noqa: PLR2004 - see above
        raise BackendFormatError(f"{name} belongs to another program; it was left as it is")
    has_record, has_tasks, has_functions = parts
    latest = migrations()[-1][0]
    made: list[int] = ((await ask(MADE))[0][0] or []) if has_record else []
    version = made[-1] if made else 0
    problem = ""
    if not has_tasks:
        problem = "has lost its tables, or columns of them"
    elif made[:latest] != list(range(1, min(version, latest) + 1)) or not made:
        problem = "has lost its record of migrations, or another program has changed it"
    elif version > latest:
        message = (
            f"{name} was written by a newer sitq (format {version}, this one knows {latest}); "
            "upgrade sitq"
        )
        raise BackendFormatError(message)
    elif not has_functions:
        problem = "has lost its functions"
    if problem:
        message = f"{name} is a store of sitq's that {problem}; restore it from a backup"
        raise BackendFormatError(message)
    return version
