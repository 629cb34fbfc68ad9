"""Listeners of the PostgreSQL store: by notifications, or by looking where none arrive."""

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

    from sitq.backends._driver_loop import Home
    from sitq.backends.postgres._connection import Link, Target
    from sitq.backends.postgres._database import Database
    from sitq.protocols import Listener

__all__ = ["Listeners"]

_ALL: Final[set[Topic]] = set(get_args(Topic))
# How often to look where notifications do not arrive, in seconds.
_LOOK_EVERY: Final = 0.1
# How long the first notification, one to ourselves, may take; seconds.
_TEST_SECONDS: Final = 2.0
# Pauses before listening again, in seconds.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


class _Ear:
    """One listener of one topic."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def ring(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()


class Listeners:
    """All that listen to one open store; they share one connection, made for the first of them.

    Args:
        home: the driver's loop; what runs in the background runs there.
        target: what to connect to.
        schema: the schema, for the names of the channels.
        database: asked whether something has changed, where notifications do not arrive.
    """

    def __init__(self, home: Home, target: Target, schema: str, database: Database) -> None:
        self._home = home
        self._target = target
        self._channels = channels_of(schema)
        self._database = database
        self._ears: dict[Topic, set[_Ear]] = {topic: set() for topic in _ALL}
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
            self._home.start(self._serve, self._settle)
        await self._settled.wait()
        ear = _Ear()
        self._ears[topic].add(ear)
        try:
            yield ear
        finally:
            self._ears[topic].discard(ear)

    def ring(self, topics: set[Topic]) -> None:
        """Tell those who listen; in the callers' loop."""
        for topic in topics:
            for ear in self._ears[topic]:
                ear.ring()

    # -- in the driver's loop ----------------------------------------------------------------

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs in the background, if it does."""
        return self._task

    async def _serve(self) -> None:
        """Listen, and look while that does not work; for ever."""
        self._task = asyncio.current_task()
        try:
            await self._listen_again_and_again()
        finally:
            self._settle()  # the loop ends; those who clean up are not kept waiting

    async def _listen_again_and_again(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            link = None
            try:
                link = await connect(self._target)
                with self._database.pool.attached(link):
                    if await self._hears(link):
                        pause = _FIRST_PAUSE
                        self._settle()
                        await link.lost.wait()
                    else:
                        self._settle()
                        await self._look_until(link.lost)
            except Exception:  # noqa: BLE001 - a store in trouble: looking goes on meanwhile
                self._settle()
            finally:
                if link is not None:
                    link.terminate()
            await self._look_for(random.uniform(pause / 2, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _settle(self) -> None:
        """Let those listen who waited for a way to; what came before was not heard."""
        self._settled.set()
        self._home.tell(partial(self.ring, _ALL))

    async def _hears(self, link: Link) -> bool:
        """Listen, and tell if a notification to ourselves arrives: behind a pooler none does."""
        test = self._test = asyncio.Event()
        await link.listen(list(self._channels), self._heard)
        channel = next(iter(self._channels))
        async with self._database.pool.lend() as other:
            await other.fetch(_sql.NOTIFY, (f"test {self._database.teller.token}", [channel]))
        try:
            async with asyncio.timeout(_TEST_SECONDS):
                await test.wait()
        except TimeoutError:
            return False
        return True

    def _heard(self, channel: str, text: str) -> None:
        token = self._database.teller.token
        if text == f"test {token}":
            if self._test is not None:
                self._test.set()
        elif text != token and not text.startswith("test"):  # our own changes are known already
            self._home.tell(partial(self.ring, {self._channels[channel]}))

    async def _look_for(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._look_until(asyncio.Event())
        except TimeoutError:
            return

    async def _look_until(self, end: asyncio.Event) -> None:
        """Look now and then; the first look cannot tell what has changed, so all are told."""
        self._snapshot = None
        while not end.is_set():
            if await self._has_changed():
                self._home.tell(partial(self.ring, _ALL))
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    await end.wait()
            except TimeoutError:
                continue

    async def _has_changed(self) -> bool:
        try:
            async with self._database.pool.lend() as link:
                snapshot = (await link.fetch(_sql.SNAPSHOT))[0][0]
        except TimeoutError:
            raise
        except Exception:  # noqa: BLE001 - a store in trouble has not changed
            return False
        before, self._snapshot = self._snapshot, snapshot
        return bool(snapshot != before)
