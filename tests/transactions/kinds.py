"""The connections that users have, each with the few words that the tests need of it."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as ext

from tests.transactions.places import Place, PostgresPlace


@dataclass
class Own:
    """A connection of the user's: what is given to sitq, and how its owner writes with it."""

    given: Any
    run: Callable[[str], Any]
    ends: list[Callable[[], Any]] = field(default_factory=list)
    begins: bool = False
    start: Callable[[], Any] | None = None
    end: Callable[[str], Any] | None = None

    async def write(self, text: str) -> None:
        """Add a note."""
        await settled(self.run(f"INSERT INTO notes VALUES ('{text}')"))

    async def begin_again(self) -> None:
        """Open the next transaction, where it does not open by itself."""
        if self.begins:
            await settled(self.run("BEGIN") if self.start is None else self.start())

    async def commit(self) -> None:
        await self._end("commit")

    async def rollback(self) -> None:
        await self._end("rollback")

    async def _end(self, how: str) -> None:
        end = getattr(self.given, how) if self.end is None else partial(self.end, how)
        await settled(end())

    async def close(self) -> None:
        for end in (self.given.close, *self.ends):
            await settled(end())


async def settled(value: Any) -> Any:
    """Wait for what has to be awaited."""
    return await value if inspect.isawaitable(value) else value


async def _sqlite3(place: Place) -> Own:
    connection = sqlite3.connect(place.path)
    return Own(connection, connection.execute)


async def _sqlite3_immediate(place: Place) -> Own:
    connection = sqlite3.connect(place.path, isolation_level="IMMEDIATE")
    connection.row_factory = sqlite3.Row
    connection.text_factory = bytes
    return Own(connection, connection.execute)


async def _sqlite3_begun(place: Place) -> Own:
    connection = sqlite3.connect(place.path, isolation_level=None)
    connection.execute("BEGIN")
    return Own(connection, connection.execute, begins=True)


async def _aiosqlite(place: Place) -> Own:
    connection = await aiosqlite.connect(place.path)
    return Own(connection, connection.execute)


def _execute(owner: Any) -> Callable[[str], Any]:
    return lambda text: owner.execute(sqlalchemy.text(text))


async def _alchemy(place: Place) -> Own:
    engine = sqlalchemy.create_engine(f"sqlite:///{place.path}")
    connection = engine.connect()
    return Own(connection, _execute(connection), [engine.dispose])


async def _alchemy_session(place: Place) -> Own:
    engine = sqlalchemy.create_engine(f"sqlite:///{place.path}")
    session = orm.Session(engine)
    return Own(session, _execute(session), [engine.dispose])


async def _alchemy_async(place: Place) -> Own:
    engine = ext.create_async_engine(f"sqlite+aiosqlite:///{place.path}")
    connection = await engine.connect()
    return Own(connection, _execute(connection), [engine.dispose])


async def _alchemy_async_session(place: Place) -> Own:
    engine = ext.create_async_engine(f"sqlite+aiosqlite:///{place.path}")
    session = ext.AsyncSession(engine)
    return Own(session, _execute(session), [engine.dispose])


# -- PostgreSQL ------------------------------------------------------------------------------


async def _asyncpg(place: PostgresPlace) -> Own:
    settings = {"search_path": place.schema}
    connection = await asyncpg.connect(place.dsn, server_settings=settings)
    return await _begun(connection)


async def _begun(connection: Any, *ends: Callable[[], Any]) -> Own:
    transactions: list[Any] = []

    async def start() -> None:
        transactions.append(connection.transaction())
        await transactions[-1].start()

    await start()
    return Own(
        connection,
        connection.execute,
        list(ends),
        begins=True,
        start=start,
        end=lambda how: getattr(transactions[-1], how)(),
    )


async def _psycopg(place: PostgresPlace) -> Own:
    connection = psycopg.connect(place.dsn, options=place.options, row_factory=dict_row)
    return Own(connection, connection.execute)


async def _psycopg_begun(place: PostgresPlace) -> Own:
    connection = psycopg.connect(place.dsn, options=place.options, autocommit=True)
    connection.execute("BEGIN")
    return Own(connection, connection.execute, begins=True)


async def _psycopg_async(place: PostgresPlace) -> Own:
    connection = await psycopg.AsyncConnection.connect(place.dsn, options=place.options)
    return Own(connection, connection.execute)


def _url(place: PostgresPlace, driver: str) -> str:
    return place.dsn.replace("postgresql://", f"postgresql+{driver}://")


async def _alchemy_psycopg(place: PostgresPlace) -> Own:
    options = {"options": place.options}
    engine = sqlalchemy.create_engine(_url(place, "psycopg"), connect_args=options)
    connection = engine.connect()
    return Own(connection, _execute(connection), [engine.dispose])


async def _alchemy_session_psycopg(place: PostgresPlace) -> Own:
    options = {"options": place.options}
    engine = sqlalchemy.create_engine(_url(place, "psycopg"), connect_args=options)
    session = orm.Session(engine)
    return Own(session, _execute(session), [engine.dispose])


async def _alchemy_psycopg_async(place: PostgresPlace) -> Own:
    options = {"options": place.options}
    engine = ext.create_async_engine(_url(place, "psycopg"), connect_args=options)
    connection = await engine.connect()
    return Own(connection, _execute(connection), [engine.dispose])


async def _alchemy_asyncpg(place: PostgresPlace) -> Own:
    options = {"server_settings": {"search_path": place.schema}}
    engine = ext.create_async_engine(_url(place, "asyncpg"), connect_args=options)
    connection = await engine.connect()
    return Own(connection, _execute(connection), [engine.dispose])


async def _alchemy_session_asyncpg(place: PostgresPlace) -> Own:
    options = {"server_settings": {"search_path": place.schema}}
    engine = ext.create_async_engine(_url(place, "asyncpg"), connect_args=options)
    session = ext.AsyncSession(engine)
    return Own(session, _execute(session), [engine.dispose])


BLOCKING: dict[str, Callable[[Any], Awaitable[Own]]] = {
    "sqlite3": _sqlite3,
    "sqlite3 immediate": _sqlite3_immediate,
    "sqlite3 begun": _sqlite3_begun,
    "SQLAlchemy Connection": _alchemy,
    "SQLAlchemy Session": _alchemy_session,
}
BLOCKING_POSTGRES: dict[str, Callable[[Any], Awaitable[Own]]] = {
    "psycopg": _psycopg,
    "psycopg begun": _psycopg_begun,
    "SQLAlchemy Connection psycopg": _alchemy_psycopg,
    "SQLAlchemy Session psycopg": _alchemy_session_psycopg,
}
AWAITED: dict[str, Callable[[Any], Awaitable[Own]]] = {
    "aiosqlite": _aiosqlite,
    "SQLAlchemy AsyncConnection": _alchemy_async,
    "SQLAlchemy AsyncSession": _alchemy_async_session,
}
AWAITED_POSTGRES: dict[str, Callable[[Any], Awaitable[Own]]] = {
    "asyncpg": _asyncpg,
    "psycopg AsyncConnection": _psycopg_async,
    "SQLAlchemy AsyncConnection psycopg": _alchemy_psycopg_async,
    "SQLAlchemy AsyncConnection asyncpg": _alchemy_asyncpg,
    "SQLAlchemy AsyncSession asyncpg": _alchemy_session_asyncpg,
}
KINDS = BLOCKING | AWAITED | BLOCKING_POSTGRES | AWAITED_POSTGRES
ASYNCIO_ONLY = AWAITED.keys() | AWAITED_POSTGRES.keys()
POSTGRES = BLOCKING_POSTGRES.keys() | AWAITED_POSTGRES.keys()


@asynccontextmanager
async def opened(kind: str, place: Place) -> AsyncIterator[Own]:
    """A connection of a kind; whoever leaves without a commit has rolled back."""
    own = await KINDS[kind](place)
    try:
        yield own
    finally:
        await own.close()
