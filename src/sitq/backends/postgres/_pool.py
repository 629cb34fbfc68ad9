"""A few connections, made when they are needed, and made anew when they were lost."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sitq.backends.postgres._driver import Link, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sitq.backends.postgres._driver import Target

__all__ = ["Pool"]


class Pool:
    """Connections that are lent for a statement each; the one used last is lent first.

    Args:
        target: what to connect to.
        size: at most so many.
    """

    def __init__(self, target: Target, size: int) -> None:
        self._target = target
        self._idle: list[Link] = []
        self._lent: set[Link] = set()
        self._room = asyncio.Semaphore(size)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Link]:
        """Lend a connection.

        Raises:
            LostError: none could be made.
        """
        async with self._room:
            link = self._waiting() or await connect(self._target)
            self._lent.add(link)
            try:
                yield link
            finally:
                self._lent.discard(link)
                if not link.is_lost:
                    self._idle.append(link)

    def _waiting(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if not link.is_lost:
                return link
        return None

    async def close(self) -> None:
        """Close all that nobody uses."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(link.close() for link in idle))

    def terminate(self) -> None:
        """Hang up everywhere."""
        for link in (*self._idle, *self._lent):
            link.terminate()
