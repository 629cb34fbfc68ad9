"""Limit how often changes are notified.

All transactions of a database that notify wait for one lock at their commit. So the first change
after a quiet time is notified in its own transaction. Changes that follow within `QUIET` seconds
are deferred, and share one notification.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final, get_args

from sitq.protocols import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

__all__ = ["QUIET", "NotifyThrottle", "channels_of"]

# Seconds between two notifications of one topic.
QUIET: Final = 0.005
_NEVER: Final = float("-inf")


def channels_of(schema: str) -> dict[str, Topic]:
    """Return the channels of a schema, and the topic of each."""
    return {f"sitq_{schema}_{topic}": topic for topic in get_args(Topic)}


class NotifyThrottle:
    """Decide which topics are notified when; in the driver's loop.

    Args:
        schema: the schema, for the names of the channels.
        send: notifies channels in a transaction of its own.
        start: runs a coroutine function as a task.
    """

    def __init__(
        self,
        schema: str,
        send: Callable[[list[str]], Coroutine[Any, Any, None]],
        start: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        self.token: Final = secrets.token_hex(4)
        self._names: Final = {topic: name for name, topic in channels_of(schema).items()}
        self._send = send
        self._start = start
        self._notified_at: dict[Topic, float] = {}
        self._deferred: set[Topic] = set()
        self._timer: asyncio.TimerHandle | None = None

    def notify_with(self, topics: Iterable[Topic]) -> tuple[list[str], set[Topic], set[Topic]]:
        """Return what the next statement is to notify: channels, topics, and deferred topics.

        The third value holds those of the topics that had been deferred. If the statement does not
        notify them, they must be passed to `notify_later`.
        """
        now = asyncio.get_running_loop().time()
        notified: set[Topic] = {
            topic for topic in topics if now - self._notified_at.get(topic, _NEVER) >= QUIET
        }
        deferred = notified & self._deferred
        self._deferred -= deferred
        return self._note(notified, now), notified, deferred

    def _note(self, notified: set[Topic], now: float) -> list[str]:
        for topic in notified:
            self._notified_at[topic] = now
        return [self._names[topic] for topic in notified]

    def notify_later(self, topics: set[Topic]) -> None:
        """Defer the notification of topics that have changed."""
        self._deferred |= topics
        if not self._deferred or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        # A little later than `QUIET`: a busy producer's next statement can notify at no cost.
        due = max(self._notified_at.get(topic, _NEVER) for topic in self._deferred) + QUIET * 1.2
        self._timer = loop.call_at(max(due, loop.time()), self._signal)

    def _signal(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if any(now - self._notified_at.get(topic, _NEVER) < QUIET for topic in self._deferred):
            self.notify_later(set())  # a statement has notified one of them meanwhile
        elif self._deferred:
            self._start(self._send_deferred)

    async def _send_deferred(self) -> None:
        late, self._deferred = self._deferred, set()
        if late:
            await self._send(self._note(late, asyncio.get_running_loop().time()))

    async def notify_rest(self) -> None:
        """Send the deferred notifications now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._send_deferred()
