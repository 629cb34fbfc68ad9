"""Telling others of changes: soon, and not more often than it helps.

A notification costs a lock that all notifying transactions of the database wait for. So the first
change after a quiet moment is told in its own transaction; the changes of a busy time are told
together, a moment later.
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
    """The channels of a schema, and the topic of each."""
    return {f"sitq_{schema}_{topic}": topic for topic in get_args(Topic)}


class NotifyThrottle:
    """Decides when which topics are told; lives in the driver's loop.

    Args:
        schema: the schema, for the names of the channels.
        send: tells channels in a transaction of its own.
        start: has a coroutine function run as a task.
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
        """The channels, and the topics, that the statement about to run is to tell.

        The last of the three are those of the topics that had been put off: should the statement
        not tell them after all, they have to be told later.
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
        """Tell topics that have changed, once it is time."""
        self._deferred |= topics
        if not self._deferred or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        # A little late, since a busy producer's next statement can tell it at no cost.
        due = max(self._notified_at.get(topic, _NEVER) for topic in self._deferred) + QUIET * 1.2
        self._timer = loop.call_at(max(due, loop.time()), self._signal)

    def _signal(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if any(now - self._notified_at.get(topic, _NEVER) < QUIET for topic in self._deferred):
            self.notify_later(set())  # a statement has told of it meanwhile
        elif self._deferred:
            self._start(self._tell)

    async def _tell(self) -> None:
        late, self._deferred = self._deferred, set()
        if late:
            await self._send(self._note(late, asyncio.get_running_loop().time()))

    async def notify_rest(self) -> None:
        """Tell at once what was put off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tell()
