"""The schema: recognised, refused, or brought up to date by numbered migrations.

`application_id` marks a file as sitq's, `user_version` is the number of its last migration; a
migration and its number are committed together.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Final

from sitq.backends.sqlite._file import WAS_EMPTIED
from sitq.errors import BackendError, BackendFormatError

if TYPE_CHECKING:
    from sitq.backends.sqlite._file import DatabaseFile

__all__ = ["APPLICATION_ID", "Migration", "check", "migrate", "migrations"]

APPLICATION_ID: Final = int.from_bytes(b"sitq", "big")
_OLDEST_SQLITE: Final = (3, 38, 0)  # the JSON operator ->> came with it

Migration = tuple[int, str]


@cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations, in order: number and script."""
    from importlib import resources

    folder = resources.files("sitq.backends.sqlite") / "migrations"
    scripts = sorted(
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )
    return tuple((int(name.split("_")[0]), script) for name, script in scripts)


def check(file: DatabaseFile) -> None:
    """Look at an existing file without changing it.

    Raises:
        BackendFormatError: it is no SQLite database, was cut short, belongs to another program
            or to a newer sitq, or has lost its tables or all that was in it.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        needed = ".".join(map(str, _OLDEST_SQLITE))
        message = f"sitq needs SQLite {needed} or newer; this Python has {sqlite3.sqlite_version}"
        raise BackendError(message)
    try:
        with closing(file.connect(read_only=True)) as connection:
            version = _version(connection, file.path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            problem = "is not an SQLite database, or was cut short"
        elif error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT:
            problem = "was cut short or is damaged"
        else:
            raise
        raise _refusal(file.path, problem) from error
    if version == 0 and file.had_wakeup_file:
        raise _refusal(file.path, WAS_EMPTIED)


def _refusal(path: str, problem: str) -> BackendFormatError:
    return BackendFormatError(f"{path} {problem}; it was left as it is")


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return the number of the last migration; 0 for an empty database.

    Reads in one transaction: another process may be migrating at the same time.
    """
    if not connection.in_transaction:
        connection.execute("BEGIN")
        try:
            return _version(connection, path)
        finally:
            connection.execute("ROLLBACK")
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    latest = migrations()[-1][0]
    if application == 0 and version == 0 and not tables:
        return 0
    if application != APPLICATION_ID:
        problem = "is a database of another program"
    elif version > latest:
        problem = (
            f"was written by a newer sitq (format {version}, this one knows {latest}); upgrade sitq"
        )
    elif version < 1 or not {"tasks", "leases"} <= tables:
        problem = "is a store of sitq's that has lost its tables"
    else:
        return version
    raise _refusal(path, problem)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Apply what is missing, in one transaction under the write lock."""
    if _version(connection, path) == migrations()[-1][0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path)
        for number, script in migrations():
            if number > version:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """Split a script into single statements; `executescript` would commit what is open."""
    statements, start = [], 0
    for position, letter in enumerate(script):
        if letter == ";" and sqlite3.complete_statement(script[start : position + 1]):
            statements.append(script[start : position + 1])
            start = position + 1
    return statements
