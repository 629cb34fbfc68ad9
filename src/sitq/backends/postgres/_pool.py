"""A few connections, made when they are needed, and made anew when they were lost."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sitq.backends.postgres._connection import PgConnection, connect
from sitq.backends.postgres._errors import LostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sitq.backends.postgres._connection import ConnectTarget

__all__ = ["Pool"]

T = TypeVar("T")


class Pool:
    """Connections that are lent for a statement each; the one used last is lent first.

    Args:
        target: what to connect to.
        size: at most so many.
    """

    def __init__(self, target: ConnectTarget, size: int) -> None:
        self._target = target
        self._idle: list[PgConnection] = []
        self._lent: set[PgConnection] = set()
        self._attached: set[PgConnection] = set()
        self._room = asyncio.Semaphore(size)
        self.has_hung_up = False
        """True once there will be no more connections."""

    def lend(self) -> _Loan:
        """Lend a connection, for a block of code."""
        return _Loan(self)

    async def use(self, work: Callable[[PgConnection], Awaitable[T]]) -> T:
        """Do some work over a connection, and return what it returned."""
        async with self.lend() as connection:
            return await work(connection)

    async def take(self) -> PgConnection:
        """Take a connection.

        Raises:
            LostError: none could be made.
        """
        await self._room.acquire()
        try:
            self._check()
            connection = self._waiting() or await connect(self._target)
            if self.has_hung_up:
                connection.terminate()
                self._check()
        except BaseException:
            self._room.release()
            raise
        self._lent.add(connection)
        return connection

    def give_back(self, connection: PgConnection) -> None:
        """Give back what was taken."""
        self._lent.discard(connection)
        if connection.has_turned_read_only and not connection.outdated:
            self.renew()
            connection.outdated = True
        if connection.outdated or self.has_hung_up:
            connection.terminate()
        elif not connection.is_lost:
            if connection.is_between_transactions:
                self._idle.append(connection)
            else:
                connection.terminate()  # the server rolls back
        self._room.release()

    def renew(self) -> None:
        """Use no connection of now again: their server takes no writes, and another one may."""
        for connection in self._lent:
            connection.outdated = True
        for connection in (*self._idle, *self._attached):
            connection.terminate()
        self._idle.clear()

    @contextmanager
    def attached(self, connection: PgConnection) -> Iterator[None]:
        """Have a connection that was made beside the pool ended with the others."""
        self._attached.add(connection)
        try:
            yield
        finally:
            self._attached.discard(connection)

    def _check(self) -> None:
        if self.has_hung_up:
            raise LostError("the backend was closed meanwhile")

    def _waiting(self) -> PgConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost:
                return connection
        return None

    async def close(self) -> None:
        """Close the idle connections, and open no more."""
        self.has_hung_up = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close() for connection in idle))

    def hang_up(self) -> None:
        """End all connections, whatever waits for an answer, and make no more."""
        self.has_hung_up = True
        for connection in (*self._idle, *self._lent):
            connection.terminate()


class _Loan:
    """A connection for a block of code: what `contextlib` makes of a generator takes longer."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: PgConnection | None = None

    async def __aenter__(self) -> PgConnection:
        self._connection = await self._pool.take()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._pool.give_back(self._connection)
