"""Wake-ups of the PostgreSQL store: notify of changes, and listen for them.

All transactions of a database that notify wait for one lock at their commit. So the first change
after a quiet time is notified in its own transaction. Changes that follow within `QUIET` seconds
are deferred, and share one notification.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, get_args

import anyio

from sitq.backends.postgres import _sql
from sitq.backends.postgres._connection import connect
from sitq.protocols import Topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from sitq.backends._driver_loop import DriverLoop
    from sitq.backends.postgres._connection import PgConnection
    from sitq.backends.postgres._pool import Pool
    from sitq.protocols import Listener

__all__ = ["QUIET", "NotifyThrottle", "ServerListeners", "channels_of"]

# Seconds between two notifications of one topic.
QUIET: Final = 0.005
_NEVER: Final = float("-inf")

_ALL: Final[set[Topic]] = set(get_args(Topic))
# Seconds between two looks at a store whose notifications do not arrive.
_LOOK_EVERY: Final = 0.1
# Seconds that the first notification, one to ourselves, may take.
_TEST_SECONDS: Final = 2.0
# Pauses before listening again, in seconds.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


def channels_of(schema: str) -> dict[str, Topic]:
    """Return the channels of a schema, and the topic of each."""
    return {f"sitq_{schema}_{topic}": topic for topic in get_args(Topic)}


class NotifyThrottle:
    """Decide which topics are notified when; in the driver's loop."""

    def __init__(self, driver_loop: DriverLoop, pool: Pool, schema: str) -> None:
        self.token: Final = secrets.token_hex(4)
        """The text of this instance's notifications, which its own listeners ignore."""
        self._driver_loop = driver_loop
        self._pool = pool
        self._names: Final = {topic: name for name, topic in channels_of(schema).items()}
        self._notified_at: dict[Topic, float] = {}
        self._deferred: set[Topic] = set()
        self._timer: asyncio.TimerHandle | None = None

    def notify_with(self, topics: Iterable[Topic]) -> tuple[list[str], set[Topic], set[Topic]]:
        """Return what the next statement is to notify: channels, topics, and deferred topics.

        The third value holds those of the topics that had been deferred. If the statement does not
        notify them, they must be passed to `notify_later`.
        """
        now = asyncio.get_running_loop().time()
        notified = {topic for topic in topics if self._is_quiet(topic, now)}
        deferred = notified & self._deferred
        self._deferred -= deferred
        return self._note(notified, now), notified, deferred

    def _is_quiet(self, topic: Topic, now: float) -> bool:
        return now - self._notified_at.get(topic, _NEVER) >= QUIET

    def _note(self, notified: set[Topic], now: float) -> list[str]:
        self._notified_at |= dict.fromkeys(notified, now)
        return [self._names[topic] for topic in notified]

    def notify_later(self, topics: set[Topic]) -> None:
        """Defer the notification of topics that have changed."""
        self._deferred |= topics
        if not self._deferred or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        # A little later than `QUIET`: a busy producer's next statement can notify at no cost.
        due = max(self._notified_at.get(topic, _NEVER) for topic in self._deferred) + QUIET * 1.2
        self._timer = loop.call_at(max(due, loop.time()), self._end_quiet_time)

    def _end_quiet_time(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if not all(self._is_quiet(topic, now) for topic in self._deferred):
            self.notify_later(set())  # a statement has notified one of them meanwhile
        elif self._deferred:
            self._driver_loop.start(self.send_deferred)

    async def send_deferred(self) -> None:
        """Notify the deferred topics now, in a transaction of its own."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        late, self._deferred = self._deferred, set()
        if late:
            channels = self._note(late, asyncio.get_running_loop().time())
            with suppress(Exception):  # listeners poll as well
                async with self._pool.lend() as connection:
                    await connection.fetch(_sql.NOTIFY, (self.token, channels))


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
    """The listeners of one open store; they share a connection, which the first one opens."""

    def __init__(self, driver_loop: DriverLoop, pool: Pool, token: str, schema: str) -> None:
        self._driver_loop = driver_loop
        self._pool = pool
        self._token = token
        self._channels = channels_of(schema)
        self._subscriptions: dict[Topic, set[_Subscription]] = {topic: set() for topic in _ALL}
        self._begun = False
        self._settled = anyio.Event()
        self._tested = asyncio.Event()
        self._snapshot: str | None = None
        self.task: asyncio.Task[None] | None = None
        """What runs in the background, in the driver's loop."""

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

    async def _serve(self) -> None:
        """Listen for ever, and poll while that is not possible."""
        self.task = asyncio.current_task()
        pause = _FIRST_PAUSE
        try:
            while True:
                if await self._listen_once():
                    pause = _FIRST_PAUSE
                with suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(pause / 2, pause)):
                        await self._poll_until(asyncio.Event())
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._settle()  # the loop ends; those who clean up are not kept waiting

    async def _listen_once(self) -> bool:
        """Listen over a new connection until it is lost; return whether notifications arrived."""
        connection = None
        hears = False
        try:
            connection = await connect(self._pool.target)
            with self._pool.attached(connection):
                hears = await self._hears(connection)
                self._settle()
                await (connection.lost.wait() if hears else self._poll_until(connection.lost))
        except Exception:  # noqa: BLE001 - the store is unavailable: polling goes on
            self._settle()
        finally:
            if connection is not None:
                connection.terminate()
        return hears

    def _settle(self) -> None:
        """Let `listen` go on, and wake all: changes before this moment were not notified."""
        self._driver_loop.tell(self._settled.set)
        self._signal(_ALL)

    def _signal(self, topics: set[Topic]) -> None:
        self._driver_loop.tell(partial(self.signal, topics))

    async def _hears(self, connection: PgConnection) -> bool:
        """Listen, and return whether a test notification arrives; behind a pooler none does."""
        self._tested = asyncio.Event()
        await connection.listen(list(self._channels), self._heard)
        channel = next(iter(self._channels))
        async with self._pool.lend() as other:
            await other.fetch(_sql.NOTIFY, (f"test {self._token}", [channel]))
        with suppress(TimeoutError):
            async with asyncio.timeout(_TEST_SECONDS):
                await self._tested.wait()
        return self._tested.is_set()

    def _heard(self, channel: str, text: str) -> None:
        if text == f"test {self._token}":
            self._tested.set()
        elif text != self._token and not text.startswith("test"):  # our own changes are known
            self._signal({self._channels[channel]})

    async def _poll_until(self, end: asyncio.Event) -> None:
        """Poll until an event is set; the first look counts as a change of all topics."""
        self._snapshot = None
        while not end.is_set():
            if await self._has_changed():
                self._signal(_ALL)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await end.wait()

    async def _has_changed(self) -> bool:
        try:
            async with self._pool.lend() as connection:
                snapshot: str = (await connection.fetch(_sql.SNAPSHOT))[0][0]
        except Exception:  # noqa: BLE001 - the store is unavailable: nothing has changed
            return False
        before, self._snapshot = self._snapshot, snapshot
        return snapshot != before
