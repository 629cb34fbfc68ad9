"""What is open between the first `open` and the last `close` of a PostgreSQL backend."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sitq.backends._driver_loop import DriverLoop
from sitq.backends.postgres import _schema, _sql
from sitq.backends.postgres._database import PgDatabase
from sitq.backends.postgres._errors import translate_error
from sitq.backends.postgres._lease_keeper import PostgresLeaseKeeper
from sitq.backends.postgres._operation_runner import OperationRunner
from sitq.backends.postgres._pool import Pool
from sitq.backends.postgres._sql import Statements
from sitq.backends.postgres._wakeups import NotifyThrottle, ServerListeners

if TYPE_CHECKING:
    from sitq._loops import LoopRef
    from sitq.administration import WorkerKeeper
    from sitq.backends.postgres._connection import ConnectTarget
    from sitq.protocols import Clock

__all__ = ["PgSession", "Settings"]

# Seconds that closing waits for statements that are under way.
_PATIENCE: Final = 5.0


class Settings(NamedTuple):
    """The checked parameters of a backend; see `PostgresBackend`."""

    target: ConnectTarget
    schema: str
    pool_size: int
    migrate: bool
    clock: Clock | None


class PgSession:
    """The connections and listeners of one event loop."""

    def __init__(self, loop: LoopRef, settings: Settings) -> None:
        self.loop: Final = loop
        self.pid: Final = os.getpid()
        self.settings: Final = settings
        self.statements: Final = Statements(settings.schema)
        self.birth: list[tuple[Any, ...]] = []
        """When the store was made, which identifies it."""
        self._driver_loop = DriverLoop(loop, "sitq-postgres")
        self._guard: asyncio.Task[None] | None = None
        self.pool: Final = Pool(settings.target, settings.pool_size)
        self.throttle: Final = NotifyThrottle(self._driver_loop, self.pool, settings.schema)
        self.listeners: Final = ServerListeners(
            self._driver_loop, self.pool, self.throttle.token, settings.schema
        )
        self._runner = OperationRunner(
            self._driver_loop,
            self.pool,
            self.throttle,
            self.listeners,
            self.statements,
            settings.clock,
        )
        self.database: Final = PgDatabase(
            loop, self._driver_loop, self._runner, settings.target.timeout
        )

    async def connect(self) -> None:
        """Connect, and check or migrate the schema."""
        try:
            await self._driver_loop.run(self._connect)
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        self._driver_loop.start(self._hang_up_at_the_end)
        place = self._runner.place
        try:
            async with self.pool.lend() as connection:
                await _schema.prepare(
                    connection,
                    self.statements,
                    self.settings.schema,
                    place,
                    migrate=self.settings.migrate,
                )
                birth = await connection.fetch(self.statements[_sql.BIRTH])
                self.birth = [tuple(row) for row in birth]
        except Exception as error:  # noqa: BLE001 - raised as what it means
            failure = translate_error("connect", place, error)
            raise failure from failure.__cause__

    async def _hang_up_at_the_end(self) -> None:
        """Hang up if the loop ends and the backend is still open."""
        self._guard = asyncio.current_task()
        await self._driver_loop.when_ended(self.pool.hang_up, _PATIENCE)

    def lease_keeper(self) -> WorkerKeeper:
        """Return a lease keeper for the calling thread."""
        return PostgresLeaseKeeper(self._driver_loop, self.pool, self._runner)

    async def close(self) -> None:
        """Close the connections, after all that was asked of them before.

        What still waits for the server a few seconds later, for a lock say, ends as lost.
        """
        self.database.shut()
        await self._driver_loop.run(self._close)
        await self._driver_loop.end()

    async def _close(self) -> None:
        kept = {task for task in (self._guard, self.listeners.task) if task is not None}
        if not await self._driver_loop.rest(_PATIENCE, kept):
            self.pool.hang_up()
            if not await self._driver_loop.rest(_PATIENCE, kept):
                await self._driver_loop.cut(kept)
        await self.throttle.send_deferred()
        await self.pool.close()
        self._driver_loop.end_soon()
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)

    def abandon(self) -> None:
        """Hang up soon, for callers that are gone; from any thread."""
        self._driver_loop.abandon()
