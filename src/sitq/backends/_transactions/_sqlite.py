"""Connections of sqlite3 and aiosqlite."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._loops import run_inline
from sitq.backends._transactions._user_connection import DirectUserConnection, UserConnection
from sitq.errors import UsageError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Coroutine

    import aiosqlite

    from sitq.backends._transactions._user_connection import Executor, Row, Values

__all__ = ["AiosqliteUserConnection", "SqliteUserConnection", "begin_of", "in_thread_of"]

T = TypeVar("T")

_AT_ONCE: Final = (
    "the connection stores at once what it writes, and no transaction is open: "
    "begin one first, with execute('BEGIN IMMEDIATE') say"
)


def begin_of(connection: sqlite3.Connection) -> str | None:
    """Return what sqlite3 would run before an INSERT, or ``None`` if a transaction is open.

    Raises:
        UsageError: it would run none.
    """
    if connection.in_transaction:
        return None
    level = connection.isolation_level
    # Since Python 3.12 there is a second switch for the same thing.
    if level is None or getattr(connection, "autocommit", False) is True:
        raise UsageError(f"bind: {_AT_ONCE}")
    return f"BEGIN {level}"  # sqlite3 accepts the names of levels only


class SqliteUserConnection(DirectUserConnection):
    """A ``sqlite3.Connection``; nothing of it suspends."""

    kind = "sqlite3.Connection"
    blocking = True
    database: Final = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        begin = begin_of(self._connection)
        if begin is None:
            return
        try:
            self._connection.execute(begin)
        except BaseException:
            # It may have begun all the same, as with a MemoryError afterwards.
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """See `Executor.fetch`."""
        cursor = self._connection.cursor()
        cursor.row_factory = None  # rows may be anything to the connection's owner
        try:
            return cursor.execute(statement, values).fetchall()
        finally:
            cursor.close()


class AiosqliteUserConnection(UserConnection):
    """An ``aiosqlite.Connection``: a unit of work runs whole in its thread."""

    kind = "aiosqlite.Connection"
    database: Final = "sqlite"

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection: Final = connection

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""

        def unit(raw: sqlite3.Connection) -> T:
            return run_inline(work(SqliteUserConnection(raw)))

        return await in_thread_of(self._connection, unit)


async def in_thread_of(
    connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]
) -> T:
    """Have aiosqlite's thread call a function with the connection itself, and wait for it.

    Raises:
        UsageError: the connection is closed.
    """
    # aiosqlite is bound to versions that have these two.
    try:
        raw = connection._conn  # noqa: SLF001
    except ValueError as error:  # its word for a connection that is closed
        raise UsageError(f"bind: the connection cannot be used: {error}") from error
    answer: T = await connection._execute(partial(function, raw))  # type: ignore[no-untyped-call]  # noqa: SLF001
    return answer
