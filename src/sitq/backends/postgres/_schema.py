"""The schema: recognised, refused, or brought up to date by numbered migrations.

A migration and its record are committed together, one process at a time.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from sitq.backends.postgres import _schema_sql as _sql
from sitq.errors import BackendFormatError

if TYPE_CHECKING:
    from sitq.backends.postgres._driver import Link
    from sitq.backends.postgres._sql import Statements

__all__ = ["Migration", "migrations", "prepare"]

Migration = tuple[int, str]


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
        BackendFormatError: it belongs to another program, to a newer sitq, or has lost its tables;
            or it is missing or older, and must not be migrated.
    """
    name = f"schema {schema!r} of {place}"
    latest = migrations()[-1][0]
    version = await _version(link, statements, schema, name)
    if version == latest:
        return
    if version > latest:
        message = (
            f"{name} was written by a newer sitq (format {version}, this one knows {latest}); "
            "upgrade sitq"
        )
        raise BackendFormatError(message)
    if not migrate:
        problem = "is not there" if version == 0 else f"has the old format {version}"
        message = (
            f"{name} {problem}, and migrate=False: have a role that may do it open it once "
            "with migrate=True"
        )
        raise BackendFormatError(message)
    async with link.transaction() as transaction:
        await transaction.fetch(_sql.LOCK_MIGRATIONS, schema)
        exists, _ = (await transaction.fetch(_sql.PRESENT, schema))[0]
        if not exists:
            await transaction.run(statements[_sql.CREATE_SCHEMA])
        await transaction.run(statements[_sql.CREATE_RECORD])
        version = (await transaction.fetch(statements[_sql.VERSION]))[0][0] or 0
        for number, script in migrations():
            if number > version:
                await transaction.run(statements[script])
                await transaction.fetch(statements[_sql.RECORD_MIGRATION], number)


async def _version(link: Link, statements: Statements, schema: str, name: str) -> int:
    """The number of the last migration; 0 for a schema with nothing in it."""
    exists, tables = (await link.fetch(_sql.PRESENT, (schema,)))[0]
    if not exists or not tables:
        return 0
    if "migrations" not in tables:
        raise BackendFormatError(f"{name} belongs to another program; it was left as it is")
    version: int | None = (await link.fetch(statements[_sql.VERSION]))[0][0]
    if version is None:
        return 0
    if "tasks" not in tables:
        raise BackendFormatError(f"{name} is a store of sitq's that has lost its tables")
    return version
