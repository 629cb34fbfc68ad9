"""Connections and sessions of SQLAlchemy 2, on SQLite and PostgreSQL.

Statements go through SQLAlchemy's own ``execute``, so that it knows of the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import sqlalchemy
from sqlalchemy import exc, orm
from sqlalchemy.ext import asyncio as ext

from sitq._loops import run_inline
from sitq.backends._transactions._postgres import AT_ONCE_THERE
from sitq.backends._transactions._sqlite import begin_of, in_thread_of
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sitq.backends._transactions._protocols import Executor, Row, UserConnection, Values

__all__ = ["AsyncAlchemyUserConnection", "SyncAlchemyUserConnection", "user_connection_of"]

T = TypeVar("T")

_NUMBER: Final = re.compile(r"\$(\d+)")


@lru_cache(maxsize=64)
def _text(statement: str) -> sqlalchemy.TextClause:
    """A statement in SQLAlchemy's words: values are bound by name."""
    return sqlalchemy.text(_NUMBER.sub(r"(:p\1)", statement))


def user_connection_of(connection: object) -> UserConnection | None:
    """Return the link of a connection or session; ``None``: it is none of SQLAlchemy's."""
    if isinstance(connection, sqlalchemy.Connection | orm.Session):
        return SyncAlchemyUserConnection(connection)
    if isinstance(connection, ext.AsyncConnection | ext.AsyncSession):
        return AsyncAlchemyUserConnection(connection)
    return None


class AlchemyExecutor:
    """Statements of a SQLAlchemy ``Connection``; nothing of it suspends for its caller."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        connection = self._connection
        if not connection.in_transaction():
            connection.begin()
        if connection.dialect.name == "sqlite":
            begin = _begin_of(connection)
            if begin is not None:
                await self.fetch(begin, {})
        elif connection.dialect.detect_autocommit_setting(_dbapi(connection)):
            raise UsageError(f"bind: {AT_ONCE_THERE}")

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """See `Executor.fetch`."""
        if not isinstance(values, Mapping):
            values = {f"p{number}": value for number, value in enumerate(values, start=1)}
        try:
            result = self._connection.execute(_text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []
        except exc.DBAPIError as error:
            # SQLAlchemy's own text would show the values.
            if error.orig is None:
                raise
            raise error.orig from None


def _dbapi(connection: sqlalchemy.Connection) -> Any:
    return connection.connection.dbapi_connection


def _begin_of(connection: sqlalchemy.Connection) -> str | None:
    """What has to be run for a transaction to be open: sqlite3 waits for the first write."""
    adapted = _dbapi(connection)
    if not hasattr(adapted, "run_async"):
        return begin_of(connection.connection.driver_connection)  # type: ignore[arg-type]

    answer: str | None = adapted.run_async(lambda driver: in_thread_of(driver, begin_of))
    return answer


def _connection_of(owner: sqlalchemy.Connection | orm.Session) -> sqlalchemy.Connection:
    return owner.connection() if isinstance(owner, orm.Session) else owner


def _database_of(owner: sqlalchemy.Connection | orm.Session) -> str:
    bind = owner.get_bind() if isinstance(owner, orm.Session) else owner
    return bind.dialect.name


class _AlchemyUserConnection:
    def __init__(self, owner: Any, inner: sqlalchemy.Connection | orm.Session) -> None:
        self._owner: Final = owner
        self._inner: Final = inner
        self.kind: Final = f"SQLAlchemy's {type(owner).__name__}"

    @property
    def database(self) -> Literal["sqlite", "postgresql"] | None:
        """See `UserConnection.database`."""
        try:
            name = _database_of(self._inner)
        except exc.SQLAlchemyError as error:
            raise UsageError(f"bind: {self.kind} has no database of its own: {error}") from None
        if name == "sqlite":
            return "sqlite"
        return "postgresql" if name == "postgresql" else None


class SyncAlchemyUserConnection(_AlchemyUserConnection):
    """A ``Connection`` or a ``Session``."""

    blocking: Final = True
    interruptible: Final = False

    def __init__(self, owner: sqlalchemy.Connection | orm.Session) -> None:
        super().__init__(owner, owner)

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""
        return await work(AlchemyExecutor(_usable(self._inner)))


class AsyncAlchemyUserConnection(_AlchemyUserConnection):
    """An ``AsyncConnection`` or an ``AsyncSession``: a unit of work is one of its greenlets."""

    blocking: Final = False
    interruptible: Final = False

    def __init__(self, owner: ext.AsyncConnection | ext.AsyncSession) -> None:
        super().__init__(owner, _inner_of(owner))

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""

        def unit(inner: sqlalchemy.Connection | orm.Session) -> T:
            return run_inline(work(AlchemyExecutor(_usable(inner))))

        answer: T = await self._owner.run_sync(unit)
        return answer


def _inner_of(
    owner: ext.AsyncConnection | ext.AsyncSession,
) -> sqlalchemy.Connection | orm.Session:
    if isinstance(owner, ext.AsyncSession):
        return owner.sync_session
    if owner.sync_connection is None:
        raise UsageError("bind: the connection is not open: use 'async with engine.connect()'")
    return owner.sync_connection


def _usable(owner: sqlalchemy.Connection | orm.Session) -> sqlalchemy.Connection:
    """The connection of a session, or itself.

    Raises:
        UsageError: it is closed, or its transaction has failed.
    """
    try:
        connection = _connection_of(owner)
        if connection.closed:
            raise UsageError("bind: the connection is closed")
    except exc.DBAPIError as error:
        raise (error.orig or error) from None
    except exc.SQLAlchemyError as error:
        raise UsageError(f"bind: the connection cannot be used: {error}") from None
    return connection
