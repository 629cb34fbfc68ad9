"""A queue's hold on its backend: opened once, by the first use, in one event loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq._loops import LoopRef, refuse_green_threads, to_its_end
from sitq.errors import UsageError
from sitq.waiting import ResultWaiters

if TYPE_CHECKING:
    from sitq.protocols import Backend

__all__ = ["Connection"]


class _Opening:
    """What is open, or about to be, in one event loop."""

    def __init__(self, backend: Backend) -> None:
        refuse_green_threads("a queue")
        self.loop: Final = LoopRef()
        self.lock: Final = anyio.Lock()
        self.waiters: Final = ResultWaiters(backend)
        self.is_open = False


class Connection:
    """Counts one user in and out of a backend, however often it is asked to."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        self._current: _Opening | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the backend if it is not open; also after a `close`.

        Raises:
            BackendError: it cannot be opened.
            UsageError: it is in use by another event loop.
        """
        self._closed = False
        await self.use()

    async def use(self) -> ResultWaiters:
        """Open the backend if it is not open yet; return what waits for its results.

        Raises:
            BackendError: it cannot be opened.
            UsageError: it was closed, or is in use by another event loop.
        """
        while True:
            opening = self._opening()
            if opening.is_open:
                return opening.waiters
            async with opening.lock:
                if self._current is opening and not opening.is_open:
                    await self._backend.open()
                    opening.is_open = True

    async def close(self) -> None:
        """Give up the backend; calls that wait for results raise `UsageError`. Twice is fine.

        Raises:
            UsageError: it is in use by another event loop.
        """
        opening = self._current
        if opening is not None and (opening.loop.inherited or opening.loop.ended):
            opening = self._current = None
        if opening is not None and opening.loop != LoopRef():
            raise UsageError("this queue is in use by another event loop: close it there")
        self._closed = True
        if opening is None:
            return
        # A user who is never counted out keeps it open.
        await to_its_end(partial(self._give_up, opening))

    async def _give_up(self, opening: _Opening) -> None:
        async with opening.lock:
            if self._current is not opening:
                return
            self._current = None
            try:
                await opening.waiters.stop(UsageError("the queue was closed during this call"))
            finally:
                if opening.is_open:
                    opening.is_open = False
                    await self._backend.close()

    def _opening(self) -> _Opening:
        if self._closed:
            raise UsageError("this queue is closed: call connect(), or use 'async with' again")
        opening = self._current
        if opening is not None and opening.loop.inherited:
            raise UsageError("this queue was opened before a fork: make a new one in the child")
        # A loop that ended without a close has taken its connection with it.
        if opening is None or opening.loop.ended:
            opening = self._current = _Opening(self._backend)
        elif not opening.loop.is_here:
            hint = "give each loop a queue and a backend of its own"
            raise UsageError(f"this queue is in use by another event loop: {hint}")
        return opening
