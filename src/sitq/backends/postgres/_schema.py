"""The schema: recognised, refused, or brought up to date by numbered migrations.

A migration and its record are committed together, one process at a time.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from sitq.backends.postgres import _schema_sql as _sql
from sitq.errors import BackendFormatError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.backends.postgres._driver import Link, Row
    from sitq.backends.postgres._sql import Statements

    Ask = Callable[..., Awaitable[list[Row]]]

__all__ = ["Migration", "migrations", "prepare"]

Migration = tuple[int, str]

# So many parts of a store make one.
_ENOUGH: Final = 2


@cache
def migrations() -> tuple[Migration, ...]:
    """The migrations, in order: number and script."""
    folder = resources.files("sitq.backends.postgres") / "migrations"
    scripts = sorted(
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )
    return tuple((int(name.split("_")[0]), script) for name, script in scripts)


async def prepare(
    link: Link, statements: Statements, schema: str, place: str, *, migrate: bool
) -> None:
    """Make sure that the schema is one that this version can use.

    Raises:
        BackendFormatError: it belongs to another program, to a newer sitq, or has lost a part of
            the store; or it is missing or older, and must not be migrated; or the database is not
            one of UTF-8.
    """
    name = f"schema {schema!r} of {place}"

    async def ask(sql: str, *parameters: Any) -> list[Row]:
        return await link.fetch(statements[sql], parameters)

    encoding = (await ask(_sql.ENCODING))[0][0]
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
    async with link.transaction() as transaction:

        async def ask_within(sql: str, *parameters: Any) -> list[Row]:
            return await transaction.fetch(statements[sql], *parameters)

        await ask_within(_sql.LOCK_MIGRATIONS, schema)
        # Others may have been here before.
        version = await _version(ask_within, schema, name)
        if version is None:
            await transaction.run(statements[_sql.CREATE_SCHEMA])
        if not version:
            await transaction.run(statements[_sql.CREATE_RECORD])
        for number, script in migrations():
            if number > (version or 0):
                await transaction.run(statements[script])
                await ask_within(_sql.RECORD_MIGRATION, number)


async def _version(ask: Ask, schema: str, name: str) -> int | None:
    """The number of the last migration; 0 for an empty schema, ``None`` for one that is not there.

    A store is known by any two of its three parts: what has one of them or none is foreign.
    """
    exists, used, *parts = (await ask(_sql.PRESENT, schema))[0]
    if not used:
        return 0 if exists else None
    if sum(parts) < _ENOUGH:
        raise BackendFormatError(f"{name} belongs to another program; it was left as it is")
    has_record, has_tasks, has_functions = parts
    latest = migrations()[-1][0]
    made: list[int] = ((await ask(_sql.MADE))[0][0] or []) if has_record else []
    version = made[-1] if made else 0
    problem = ""
    if not has_tasks:
        problem = "has lost its tables, or columns of them"
    elif made[:latest] != list(range(1, min(version, latest) + 1)) or not made:
        problem = "has lost its record of migrations, or somebody has changed it"
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
