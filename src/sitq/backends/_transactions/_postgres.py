"""Connections of asyncpg and psycopg 3."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from sitq.backends._transactions._user_connection import DirectUserConnection
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import asyncpg
    import psycopg

    from sitq.backends._transactions._user_connection import Executor, Row, Values

__all__ = [
    "AT_ONCE_THERE",
    "AsyncPsycopgUserConnection",
    "AsyncpgUserConnection",
    "PsycopgUserConnection",
]

T = TypeVar("T")

AT_ONCE_THERE: Final = (
    "the connection stores at once what it writes, and no transaction is open: "
    "begin one first, with 'connection.transaction()' say"
)

# Units of one connection come one after the other: their savepoints must not be mixed up.
_turns: Final[WeakKeyDictionary[object, asyncio.Lock]] = WeakKeyDictionary()


class _PostgresUserConnection(DirectUserConnection):
    database: Final = "postgresql"


class _AwaitedUserConnection(_PostgresUserConnection):
    interruptible = True

    def __init__(self, inner: object | None) -> None:
        turn = asyncio.Lock()
        self._turn: Final = turn if inner is None else _turns.setdefault(inner, turn)

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""
        async with self._turn:
            return await work(self)


class AsyncpgUserConnection(_AwaitedUserConnection):
    """An asyncpg connection, of a pool or not."""

    kind = "asyncpg's Connection"

    def __init__(self, connection: asyncpg.Connection) -> None:
        # A pool lends its connection in a wrapping, which is empty once it was given back.
        super().__init__(getattr(connection, "_con", connection))
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        if self._connection.is_closed():
            raise UsageError("bind: the connection cannot be used here: it is closed")
        if not self._connection.is_in_transaction():
            raise UsageError(f"bind: {AT_ONCE_THERE}")

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """See `Executor.fetch`."""
        return [tuple(row) for row in await self._connection.fetch(statement, *values)]


class PsycopgUserConnection(_PostgresUserConnection):
    """A ``psycopg.Connection``; nothing of it suspends."""

    kind = "psycopg.Connection"
    blocking = True

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        _check_begins(self._connection)

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """See `Executor.fetch`."""
        from psycopg import RawCursor, rows

        with RawCursor(self._connection, row_factory=rows.tuple_row) as cursor:
            cursor.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []


class AsyncPsycopgUserConnection(_AwaitedUserConnection):
    """A ``psycopg.AsyncConnection``."""

    kind = "psycopg.AsyncConnection"

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        _check_begins(self._connection)

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """See `Executor.fetch`."""
        from psycopg import AsyncRawCursor, rows

        async with AsyncRawCursor(self._connection, row_factory=rows.tuple_row) as cursor:
            await cursor.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else []


def _check_begins(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse a connection that has no transaction open and opens none by itself, or a pipeline."""
    from psycopg.pq import PipelineStatus, TransactionStatus

    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise UsageError("bind: the connection is in pipeline mode: leave the pipeline first")
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise UsageError(f"bind: {AT_ONCE_THERE}")
