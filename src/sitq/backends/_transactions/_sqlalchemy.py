"""Connections and sessions of SQLAlchemy 2, on SQLite and PostgreSQL.

Statements go through SQLAlchemy's own ``execute``, so that it knows of the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import sqlalchemy
from sqlalchemy import exc, orm
from sqlalchemy.ext import asyncio as ext

from sitq._loops import run_inline
from sitq.backends._transactions._postgres import AT_ONCE_THERE
from sitq.backends._transactions._sqlite import begin_of, in_thread_of
from sitq.backends._transactions._user_connection import Executor, UserConnection
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sitq.backends._transactions._user_connection import Row, Values

__all__ = ["AlchemyUserConnection", "user_connection_of"]

T = TypeVar("T")

AnyOwner: TypeAlias = sqlalchemy.Connection | orm.Session | ext.AsyncConnection | ext.AsyncSession

_NUMBER: Final = re.compile(r"\$(\d+)")


@lru_cache(maxsize=64)
def _text(statement: str) -> sqlalchemy.TextClause:
    """Return a statement in SQLAlchemy's form: values are bound by name."""
    return sqlalchemy.text(_NUMBER.sub(r"(:p\1)", statement))


class AlchemyExecutor(Executor):
    """Statements of a SQLAlchemy ``Connection``; nothing of it suspends for its caller."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection: Final = connection

    async def begin(self) -> None:
        """See `Executor.begin`."""
        connection = self._connection
        if not connection.in_transaction():
            connection.begin()
        adapted: Any = connection.connection.dbapi_connection
        if connection.dialect.name == "sqlite":
            # sqlite3 itself begins a transaction with the first write only.
            if hasattr(adapted, "run_async"):
                begin = adapted.run_async(lambda driver: in_thread_of(driver, begin_of))
            else:
                begin = begin_of(connection.connection.driver_connection)  # type: ignore[arg-type]
            if begin is not None:
                await self.fetch(begin, {})
        elif connection.dialect.detect_autocommit_setting(adapted):
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


class AlchemyUserConnection(UserConnection):
    """A connection or session; a unit of work of an async one is one of its greenlets."""

    def __init__(self, owner: AnyOwner) -> None:
        self._owner: Final[Any] = owner
        self.kind = f"SQLAlchemy's {type(owner).__name__}"
        self.blocking = isinstance(owner, sqlalchemy.Connection | orm.Session)

    @property
    def database(self) -> Literal["sqlite", "postgresql"] | None:
        """See `UserConnection.database`."""
        inner = self._owner
        if isinstance(inner, ext.AsyncSession):
            inner = inner.sync_session
        elif isinstance(inner, ext.AsyncConnection):
            inner = inner.sync_connection
        if inner is None:
            raise UsageError("bind: the connection is not open: use 'async with engine.connect()'")
        try:
            bind = inner.get_bind() if isinstance(inner, orm.Session) else inner
        except exc.SQLAlchemyError as error:
            raise UsageError(f"bind: {self.kind} has no database of its own: {error}") from None
        if bind.dialect.name == "sqlite":
            return "sqlite"
        return "postgresql" if bind.dialect.name == "postgresql" else None

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""
        if self.blocking:
            return await work(AlchemyExecutor(_usable(self._owner)))

        def unit(inner: sqlalchemy.Connection | orm.Session) -> T:
            return run_inline(work(AlchemyExecutor(_usable(inner))))

        answer: T = await self._owner.run_sync(unit)
        return answer


def user_connection_of(connection: object) -> UserConnection | None:
    """Return the `UserConnection` of a connection or session of SQLAlchemy's, or ``None``."""
    return AlchemyUserConnection(connection) if isinstance(connection, AnyOwner) else None


def _usable(owner: sqlalchemy.Connection | orm.Session) -> sqlalchemy.Connection:
    """Return the connection of a session, or the connection itself.

    Raises:
        UsageError: it is closed, or its transaction has failed.
    """
    try:
        connection = owner.connection() if isinstance(owner, orm.Session) else owner
        if connection.closed:
            raise UsageError("bind: the connection is closed")
    except exc.DBAPIError as error:
        raise (error.orig or error) from None
    except exc.SQLAlchemyError as error:
        raise UsageError(f"bind: the connection cannot be used: {error}") from None
    return connection
