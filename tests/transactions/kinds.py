"""The connections that users have, each with the few words that the tests need of it."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosqlite
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as ext

from sitq import SQLiteBackend
from sitq.protocols import Backend


@dataclass
class Place:
    """An empty store, with a table of the user's beside the tasks."""

    path: Path

    def backend(self, **options: Any) -> Backend:
        return SQLiteBackend(self.path, **options)

    def look(self, query: str) -> list[tuple[Any, ...]]:
        """Look into the store past everybody."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def prepare(self) -> None:
        """Make the user's table."""
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.close()

    @property
    def notes(self) -> list[str]:
        """What the user has written."""
        return [text for (text,) in self.look("SELECT text FROM notes ORDER BY text")]


@dataclass
class Own:
    """A connection of the user's: what is given to sitq, and how its owner writes with it."""

    given: Any
    run: Callable[[str], Any]
    ends: list[Callable[[], Any]] = field(default_factory=list)
    begins: bool = False

    async def write(self, text: str) -> None:
        """Add a note."""
        await settled(self.run(f"INSERT INTO notes VALUES ('{text}')"))

    async def begin_again(self) -> None:
        """Open the next transaction, where it does not open by itself."""
        if self.begins:
            await settled(self.run("BEGIN"))

    async def commit(self) -> None:
        await settled(self.given.commit())

    async def rollback(self) -> None:
        await settled(self.given.rollback())

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


BLOCKING = {
    "sqlite3": _sqlite3,
    "sqlite3 immediate": _sqlite3_immediate,
    "sqlite3 begun": _sqlite3_begun,
    "SQLAlchemy Connection": _alchemy,
    "SQLAlchemy Session": _alchemy_session,
}
AWAITED = {
    "aiosqlite": _aiosqlite,
    "SQLAlchemy AsyncConnection": _alchemy_async,
    "SQLAlchemy AsyncSession": _alchemy_async_session,
}
KINDS = BLOCKING | AWAITED


@asynccontextmanager
async def opened(kind: str, place: Place) -> AsyncIterator[Own]:
    """A connection of a kind; whoever leaves without a commit has rolled back."""
    own = await KINDS[kind](place)
    try:
        yield own
    finally:
        await own.close()
