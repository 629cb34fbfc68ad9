"""Recognise a user's connection, without importing drivers that the user has not imported."""

from __future__ import annotations

import sqlite3
import sys
from typing import TYPE_CHECKING

import aiosqlite

from sitq.backends._transactions._postgres import (
    AsyncpgUserConnection,
    AsyncPsycopgUserConnection,
    PsycopgUserConnection,
)
from sitq.backends._transactions._sqlite import AiosqliteUserConnection, SqliteUserConnection
from sitq.errors import UsageError

if TYPE_CHECKING:
    from sitq.backends._transactions._protocols import UserConnection

__all__ = ["user_connection_of"]

_HINT = (
    "give an open connection of sqlite3 or aiosqlite, of asyncpg or psycopg, or a Connection, "
    "Session, AsyncConnection or AsyncSession of SQLAlchemy"
)


def user_connection_of(connection: object) -> UserConnection:
    """Return the `UserConnection` for a connection.

    Raises:
        UsageError: its kind is unknown.
    """
    if isinstance(connection, sqlite3.Connection):
        return SqliteUserConnection(connection)
    if isinstance(connection, aiosqlite.Connection):
        return AiosqliteUserConnection(connection)
    for recognise in (_of_sqlalchemy, _of_psycopg, _of_asyncpg):
        link = recognise(connection)
        if link is not None:
            return link
    given = type(connection)
    raise UsageError(f"bind: {_HINT} (got {given.__module__}.{given.__qualname__})")


def _of_sqlalchemy(connection: object) -> UserConnection | None:
    if "sqlalchemy" not in sys.modules:
        return None
    from sitq.backends._transactions import _sqlalchemy

    return _sqlalchemy.user_connection_of(connection)


def _of_psycopg(connection: object) -> UserConnection | None:
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(connection, psycopg.Connection):
        return PsycopgUserConnection(connection)
    if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
        return AsyncPsycopgUserConnection(connection)
    return None


def _of_asyncpg(connection: object) -> UserConnection | None:
    asyncpg = sys.modules.get("asyncpg")
    if asyncpg is None:
        return None
    if isinstance(connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
        return AsyncpgUserConnection(connection)
    return None
