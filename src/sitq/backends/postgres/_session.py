"""What is open between the first `open` and the last `close` of a PostgreSQL backend."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sitq.backends._driver_loop import DriverLoop
from sitq.backends.postgres import _schema, _sql
from sitq.backends.postgres._database import PgDatabase
from sitq.backends.postgres._errors import translate_error
from sitq.backends.postgres._lease_keeper import PostgresLeaseKeeper
from sitq.backends.postgres._sql import Statements
from sitq.backends.postgres._wakeups import ServerListeners

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from sitq._loops import LoopRef
    from sitq.backends.postgres._connection import ConnectTarget, PgConnection
    from sitq.protocols import Clock, LeaseKeeper, Topic

__all__ = ["PgSession", "Settings"]

T = TypeVar("T")

# How long closing waits for statements that are under way, in seconds.
_PATIENCE: Final = 5.0


class Settings(NamedTuple):
    """What a backend was told.

    Args:
        target: what to connect to.
        schema: the schema.
        pool_size: at most so many connections, beside one to listen.
        migrate: whether to bring the schema up to date.
        clock: a test's clock; ``None``: the server's counts.
    """

    target: ConnectTarget
    schema: str
    pool_size: int
    migrate: bool
    clock: Clock | None


class PgSession:
    """Connections, and those who listen, for one event loop."""

    def __init__(self, loop: LoopRef, settings: Settings) -> None:
        self.loop: Final = loop
        self.pid: Final = os.getpid()
        self.settings: Final = settings
        self.statements: Final = Statements(settings.schema)
        self.birth: list[tuple[Any, ...]] = []
        """When the store was made, which tells it from every other."""
        self._driver_loop = DriverLoop(loop, "sitq-postgres")
        self._guard: asyncio.Task[None] | None = None
        self.database: Final = PgDatabase(
            self._driver_loop,
            loop,
            settings.target,
            settings.pool_size,
            (settings.schema, self.statements),
            settings.clock,
            self._signal,
        )
        self.listeners: Final = ServerListeners(
            self._driver_loop, settings.target, settings.schema, self.database
        )

    def _signal(self, topics: set[Topic]) -> None:
        self.listeners.signal(topics)

    async def connect(self) -> None:
        """Connect, and check or migrate the schema."""
        try:
            await self._driver_loop.run(self._connect)
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        self._driver_loop.start(self._terminate_in_the_end)
        settings = self.settings
        place = self.database.place
        try:
            async with self.database.pool.lend() as connection:
                await _schema.prepare(
                    connection, self.statements, settings.schema, place, migrate=settings.migrate
                )
                birth = await connection.fetch(self.statements[_sql.BIRTH])
                self.birth = [tuple(row) for row in birth]
        except Exception as error:  # noqa: BLE001 - raised as what it means
            failure = translate_error("connect", place, error)
            raise failure from failure.__cause__

    async def _terminate_in_the_end(self) -> None:
        """Hang up when this is cancelled: the loop ends, and nobody has closed."""
        self._guard = asyncio.current_task()
        await self._driver_loop.when_ended(self.database.pool.hang_up, _PATIENCE)

    def lease_keeper(self) -> LeaseKeeper:
        """A lease keeper for the calling thread."""
        return PostgresLeaseKeeper(
            self.settings.target,
            self.statements,
            self.database.throttle,
            self.settings.clock,
            self._borrow,
        )

    def _borrow(self, work: Callable[[PgConnection], Awaitable[T]]) -> Future[T]:
        return self._driver_loop.submit(partial(self.database.pool.use, work))

    async def close(self) -> None:
        """Close the connections, after all that was asked of them before.

        What waits for the server then, for a lock say, has a few seconds, and ends as lost.
        """
        self.database.shut()
        await self._driver_loop.run(self._close)
        await self._driver_loop.end()

    async def _close(self) -> None:
        kept = {task for task in (self._guard, self.listeners.task) if task is not None}
        if not await self._driver_loop.rest(_PATIENCE, kept):
            self.database.pool.hang_up()
            if not await self._driver_loop.rest(_PATIENCE, kept):
                await self._driver_loop.cut(kept)
        await self.database.close()
        self._driver_loop.end_soon()
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)

    def abandon(self) -> None:
        """Hang up soon, for callers that are gone; from any thread."""
        self._driver_loop.abandon()
