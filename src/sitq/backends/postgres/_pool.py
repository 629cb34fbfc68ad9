"""A few connections, made when they are needed, and made anew when they were lost."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sitq.backends.postgres._connection import Link, connect
from sitq.backends.postgres._errors import LostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sitq.backends.postgres._connection import Target

__all__ = ["Pool"]

T = TypeVar("T")


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
        self._attached: set[Link] = set()
        self._room = asyncio.Semaphore(size)
        self.has_hung_up = False
        """True once there will be no more connections."""

    def lend(self) -> _Loan:
        """Lend a connection, for a block of code."""
        return _Loan(self)

    async def use(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do some work over a connection, and return what it returned."""
        async with self.lend() as link:
            return await work(link)

    async def take(self) -> Link:
        """Take a connection.

        Raises:
            LostError: none could be made.
        """
        await self._room.acquire()
        try:
            self._check()
            link = self._waiting() or await connect(self._target)
            if self.has_hung_up:
                link.terminate()
                self._check()
        except BaseException:
            self._room.release()
            raise
        self._lent.add(link)
        return link

    def give_back(self, link: Link) -> None:
        """Give back what was taken."""
        self._lent.discard(link)
        if link.has_turned_read_only and not link.outdated:
            self.renew()
            link.outdated = True
        if link.outdated or self.has_hung_up:
            link.terminate()
        elif not link.is_lost:
            if link.is_between_transactions:
                self._idle.append(link)
            else:
                link.terminate()  # the server rolls back
        self._room.release()

    def renew(self) -> None:
        """Use no connection of now again: their server takes no writes, and another one may."""
        for link in self._lent:
            link.outdated = True
        for link in (*self._idle, *self._attached):
            link.terminate()
        self._idle.clear()

    @contextmanager
    def attached(self, link: Link) -> Iterator[None]:
        """Have a connection that was made beside the pool ended with the others."""
        self._attached.add(link)
        try:
            yield
        finally:
            self._attached.discard(link)

    def _check(self) -> None:
        if self.has_hung_up:
            raise LostError("the backend was closed meanwhile")

    def _waiting(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if not link.is_lost:
                return link
        return None

    async def close(self) -> None:
        """Close all that nobody uses, and make no more."""
        self.has_hung_up = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(link.close() for link in idle))

    def hang_up(self) -> None:
        """End all connections, whatever waits for an answer, and make no more."""
        self.has_hung_up = True
        for link in (*self._idle, *self._lent):
            link.terminate()


class _Loan:
    """A connection for a block of code: what `contextlib` makes of a generator takes longer."""

    __slots__ = ("_link", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._link: Link | None = None

    async def __aenter__(self) -> Link:
        self._link = await self._pool.take()
        return self._link

    async def __aexit__(self, *_: object) -> None:
        if self._link is not None:
            self._pool.give_back(self._link)
