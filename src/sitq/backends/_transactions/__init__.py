"""The kinds of users' connections, and what stores do in transactions of theirs.

Drivers that the user has not imported are not imported here either.
"""

from __future__ import annotations

import sqlite3
import sys

import aiosqlite

from sitq.backends._transactions._postgres import (
    AsyncpgUserConnection,
    AsyncPsycopgUserConnection,
    PsycopgUserConnection,
)
from sitq.backends._transactions._sqlite import AiosqliteUserConnection, SqliteUserConnection
from sitq.backends._transactions._user_connection import Executor, Row, UserConnection
from sitq.backends._transactions._user_transaction import UserTransaction
from sitq.errors import UsageError

__all__ = [
    "Executor",
    "Row",
    "UserConnection",
    "UserTransaction",
    "user_connection_of",
]

_HINT = (
    "give an open connection of sqlite3 or aiosqlite, of asyncpg or psycopg, or a Connection, "
    "Session, AsyncConnection or AsyncSession of SQLAlchemy"
)


def user_connection_of(connection: object) -> UserConnection:
    """Return the `UserConnection` for a connection.

    Raises:
        UsageError: its kind is unknown.
    """
    found: UserConnection | None = None
    if isinstance(connection, sqlite3.Connection):
        found = SqliteUserConnection(connection)
    elif isinstance(connection, aiosqlite.Connection):
        found = AiosqliteUserConnection(connection)
    if found is None and "sqlalchemy" in sys.modules:
        from sitq.backends._transactions import _sqlalchemy

        found = _sqlalchemy.user_connection_of(connection)
    if found is None and (psycopg := sys.modules.get("psycopg")) is not None:
        if isinstance(connection, psycopg.Connection):
            found = PsycopgUserConnection(connection)
        elif isinstance(connection, psycopg.AsyncConnection):
            found = AsyncPsycopgUserConnection(connection)
    if (
        found is None
        and (asyncpg := sys.modules.get("asyncpg")) is not None
        and isinstance(connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy)
    ):
        found = AsyncpgUserConnection(connection)
    if found is None:
        given = type(connection)
        raise UsageError(f"bind: {_HINT} (got {given.__module__}.{given.__qualname__})")
    return found
