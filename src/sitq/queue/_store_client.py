"""Open a store at the first use, for one event loop, and close it once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Self

import anyio

from sitq._loops import LoopRef, refuse_green_threads, run_to_completion
from sitq.errors import UsageError
from sitq.queue._waiting import ResultWaiters

if TYPE_CHECKING:
    from types import TracebackType

    from sitq.protocols import Backend

__all__ = ["BackendHandle", "StoreClient"]


class _Opening:
    """The state of an open store, or of one that is being opened, in one event loop."""

    def __init__(self, backend: Backend) -> None:
        refuse_green_threads("a queue")
        self.loop: Final = LoopRef()
        self.lock: Final = anyio.Lock()
        self.waiters: Final = ResultWaiters(backend)
        self.is_open = False


class BackendHandle:
    """Opens and closes a backend for one queue: once each, however often it is called."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        self._current: _Opening | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the backend if it is not open; also after a `close`."""
        self._closed = False
        await self.waiters()

    async def use(self) -> None:
        """Open the backend if it is not open yet; its own methods check loop and process."""
        opening = self._current
        if self._closed or opening is None or not opening.is_open or opening.loop.ended:
            await self.waiters()

    async def waiters(self) -> ResultWaiters:
        """Open the backend if it is not open yet; return what waits for results in this loop.

        Raises:
            UsageError: it was closed, or is in use by another event loop or a parent process.
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
        """Close the backend; calls that wait for results raise `UsageError`. Idempotent."""
        opening = self._current
        if opening is not None and (opening.loop.inherited or opening.loop.ended):
            opening = self._current = None
        if opening is not None and not opening.loop.is_here:
            raise UsageError("this queue is in use by another event loop: close it there")
        self._closed = True
        if opening is None:
            return
        # The backend counts its users: one that is never counted out keeps it open.
        await run_to_completion(partial(self._give_up, opening))

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
        if opening is not None and opening.loop.is_here:
            return opening
        if opening is not None and opening.loop.inherited:
            raise UsageError("this queue was opened before a fork: make a new one in the child")
        if opening is not None and not opening.loop.ended:
            hint = "give each loop a queue and a backend of its own"
            raise UsageError(f"this queue is in use by another event loop: {hint}")
        # The connection of a loop that ended without a close is gone.
        opening = self._current = _Opening(self._backend)
        return opening


class StoreClient:
    """The methods by which a client of a store opens and closes it.

    Args:
        backend: the store.
    """

    def __init__(self, backend: Backend) -> None:
        self._handle: Final = BackendHandle(backend)

    async def connect(self) -> None:
        """Open the store; once is enough. After a `close` it opens the store again.

        Raises:
            BackendError: the store cannot be opened.
            UsageError: it is in use by another event loop, or was inherited by a fork.
        """
        await self._handle.open()

    async def close(self) -> None:
        """Close the store; calls that wait meanwhile raise `UsageError`. Idempotent.

        Raises:
            UsageError: it is in use by another event loop.
            BackendError: the store could not be closed in good order.
        """
        await self._handle.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
