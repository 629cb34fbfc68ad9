"""Listeners of the PostgreSQL store; woken by notifications, or by polling if none arrive."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, get_args

import anyio

from sitq._loops import SharedEvent
from sitq.backends.postgres import _sql
from sitq.backends.postgres._connection import connect
from sitq.backends.postgres._notify_throttle import channels_of
from sitq.protocols import Topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sitq.backends._driver_loop import DriverLoop
    from sitq.backends.postgres._connection import ConnectTarget, PgConnection
    from sitq.backends.postgres._database import PgDatabase
    from sitq.protocols import Listener

__all__ = ["ServerListeners"]

_ALL: Final[set[Topic]] = set(get_args(Topic))
# Seconds between two looks at a store whose notifications do not arrive.
_LOOK_EVERY: Final = 0.1
# How long the first notification, one to ourselves, may take; seconds.
_TEST_SECONDS: Final = 2.0
# Pauses before listening again, in seconds.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


class _Subscription:
    """One listener of one topic."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def signal(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()


class ServerListeners:
    """The listeners of one open store; they share a connection, which the first one opens.

    Args:
        driver_loop: the driver's loop; what runs in the background runs there.
        target: what to connect to.
        schema: the schema, for the names of the channels.
        database: asked whether something has changed, where notifications do not arrive.
    """

    def __init__(
        self, driver_loop: DriverLoop, target: ConnectTarget, schema: str, database: PgDatabase
    ) -> None:
        self._driver_loop = driver_loop
        self._target = target
        self._channels = channels_of(schema)
        self._database = database
        self._subscriptions: dict[Topic, set[_Subscription]] = {topic: set() for topic in _ALL}
        self._begun = False
        self._settled = SharedEvent()
        self._test: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._snapshot: str | None = None

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """Listen from now on."""
        if not self._begun:
            self._begun = True
            self._driver_loop.start(self._serve, self._settle)
        await self._settled.wait()
        subscription = _Subscription()
        self._subscriptions[topic].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[topic].discard(subscription)

    def signal(self, topics: set[Topic]) -> None:
        """Wake the listeners of topics; in the callers' loop."""
        for topic in topics:
            for subscription in self._subscriptions[topic]:
                subscription.signal()

    # -- in the driver's loop ----------------------------------------------------------------

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs in the background, if it does."""
        return self._task

    async def _serve(self) -> None:
        """Listen for ever, and poll while that is not possible."""
        self._task = asyncio.current_task()
        try:
            await self._listen_again_and_again()
        finally:
            self._settle()  # the loop ends; those who clean up are not kept waiting

    async def _listen_again_and_again(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            connection = None
            try:
                connection = await connect(self._target)
                with self._database.pool.attached(connection):
                    if await self._hears(connection):
                        pause = _FIRST_PAUSE
                        self._settle()
                        await connection.lost.wait()
                    else:
                        self._settle()
                        await self._look_until(connection.lost)
            except Exception:  # noqa: BLE001 - the store is unavailable: polling goes on
                self._settle()
            finally:
                if connection is not None:
                    connection.terminate()
            await self._look_for(random.uniform(pause / 2, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _settle(self) -> None:
        """Let `listen` go on, and wake all: changes before this moment were not notified."""
        self._settled.set()
        self._driver_loop.tell(partial(self.signal, _ALL))

    async def _hears(self, connection: PgConnection) -> bool:
        """Listen, and return whether a test notification arrives; behind a pooler none does."""
        test = self._test = asyncio.Event()
        await connection.listen(list(self._channels), self._heard)
        channel = next(iter(self._channels))
        async with self._database.pool.lend() as other:
            await other.fetch(_sql.NOTIFY, (f"test {self._database.throttle.token}", [channel]))
        try:
            async with asyncio.timeout(_TEST_SECONDS):
                await test.wait()
        except TimeoutError:
            return False
        return True

    def _heard(self, channel: str, text: str) -> None:
        token = self._database.throttle.token
        if text == f"test {token}":
            if self._test is not None:
                self._test.set()
        elif text != token and not text.startswith("test"):  # our own changes are known already
            self._driver_loop.tell(partial(self.signal, {self._channels[channel]}))

    async def _look_for(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._look_until(asyncio.Event())
        except TimeoutError:
            return

    async def _look_until(self, end: asyncio.Event) -> None:
        """Poll until an event is set; the first look counts as a change of all topics."""
        self._snapshot = None
        while not end.is_set():
            if await self._has_changed():
                self._driver_loop.tell(partial(self.signal, _ALL))
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    await end.wait()
            except TimeoutError:
                continue

    async def _has_changed(self) -> bool:
        try:
            async with self._database.pool.lend() as connection:
                snapshot = (await connection.fetch(_sql.SNAPSHOT))[0][0]
        except TimeoutError:
            raise
        except Exception:  # noqa: BLE001 - the store is unavailable: nothing has changed
            return False
        before, self._snapshot = self._snapshot, snapshot
        return bool(snapshot != before)
