"""A few connections, made when they are needed, and made anew when they were lost."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sitq.backends.postgres._connection import PgConnection, connect
from sitq.backends.postgres._errors import LostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sitq.backends.postgres._connection import ConnectTarget

__all__ = ["Pool"]


class Pool:
    """Connections that are lent for a statement each; the one used last is lent first."""

    def __init__(self, target: ConnectTarget, size: int) -> None:
        self.target = target
        self._idle: list[PgConnection] = []
        self._lent: set[PgConnection] = set()
        self._attached: set[PgConnection] = set()
        self._room = asyncio.Semaphore(size)
        self.is_terminated = False
        """True once there will be no more connections."""

    def lend(self) -> _Loan:
        """Lend a connection for a block of code.

        Raises:
            LostError: none could be made.
        """
        return _Loan(self)

    async def take(self) -> PgConnection:
        """Take a connection; only for `_Loan`."""
        await self._room.acquire()
        try:
            self._check()
            connection = self._pop_idle() or await connect(self.target)
            if self.is_terminated:
                connection.terminate()
                self._check()
        except BaseException:
            self._room.release()
            raise
        self._lent.add(connection)
        return connection

    def _check(self) -> None:
        if self.is_terminated:
            raise LostError("the backend was closed meanwhile")

    def _pop_idle(self) -> PgConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost:
                return connection
        return None

    def give_back(self, connection: PgConnection) -> None:
        """Give back what was taken."""
        self._lent.discard(connection)
        if connection.has_turned_read_only and not connection.outdated:
            self.renew()
            connection.outdated = True
        if connection.is_reusable and not self.is_terminated:
            self._idle.append(connection)
        else:
            connection.terminate()
        self._room.release()

    def renew(self) -> None:
        """Use none of these connections again: their server takes no writes, another one may."""
        for connection in self._lent:
            connection.outdated = True
        for connection in (*self._idle, *self._attached):
            connection.terminate()
        self._idle.clear()

    @contextmanager
    def attached(self, connection: PgConnection) -> Iterator[None]:
        """Have a connection that was made beside the pool end at `renew` too."""
        self._attached.add(connection)
        try:
            yield
        finally:
            self._attached.discard(connection)

    async def close(self) -> None:
        """Close the idle connections, and open no more."""
        self.is_terminated = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close() for connection in idle))

    def hang_up(self) -> None:
        """End all connections, whatever waits for an answer, and make no more."""
        self.is_terminated = True
        for connection in (*self._idle, *self._lent):
            connection.terminate()


class _Loan:
    """A connection for a block of code; faster than a generator of `contextlib`."""

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
