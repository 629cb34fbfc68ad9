"""Group commit: requests that wait at the same time are written together.

Any loop submits; one writer at a time (a database thread) takes all that has gathered, and the
answers go back to the loop in one call. Nothing waits for a timer: a batch is what gathered
while the last one was being written.
"""

from __future__ import annotations

import threading
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import anyio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from sitq._loops import LoopRef

__all__ = ["GroupCommit", "Request", "join"]

O = TypeVar("O")  # noqa: E741 - what comes out


class Request(Generic[O]):
    """A batch of items for one operation, and a place for the answers.

    ``undo`` is called with the answers if nobody is there any more to take them.
    """

    __slots__ = ("_event", "abandoned", "answers", "error", "items", "operation", "undo")

    def __init__(
        self,
        loop: LoopRef,
        operation: Callable[..., list[O]],
        items: Sequence[Any],
        undo: Callable[[list[O]], None] | None = None,
    ) -> None:
        self.operation: Final = operation
        self.items: Final = items
        self.undo: Final = undo
        self.answers: list[O] | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        # anyio's event costs several times as much as a bare future.
        self._event: asyncio.Future[None] | anyio.Event = (
            anyio.Event() if loop.asyncio is None else loop.asyncio.create_future()
        )

    @property
    def done(self) -> bool:
        """True once there is an answer or an error."""
        return self.answers is not None or self.error is not None

    async def wait(self) -> None:
        """Return once `wake` has been called."""
        if isinstance(self._event, anyio.Event):
            await self._event.wait()
        else:
            await self._event

    def wake(self) -> None:
        """End the waiting; in the loop."""
        if isinstance(self._event, anyio.Event):
            self._event.set()
        elif not self._event.done():
            self._event.set_result(None)

    def result(self) -> list[O]:
        """The answers.

        Raises:
            BaseException: what went wrong instead.
        """
        if self.error is not None:
            raise self.error
        return cast("list[O]", self.answers)


class GroupCommit:
    """Gathers requests and hands them to a writer in batches.

    Args:
        loop: the loop that all requests come from.
        schedule: has a function called soon by the one thread that writes.
        write: carries out a batch in that thread; answers or an error go into each request.
    """

    def __init__(
        self,
        loop: LoopRef,
        schedule: Callable[[Callable[[], None]], None],
        write: Callable[[list[Request[Any]]], None],
    ) -> None:
        self._loop = loop
        self._schedule = schedule
        self._write = write
        self._lock = threading.Lock()
        self._pending: list[Request[Any]] = []
        self._scheduled = False

    async def submit(
        self,
        operation: Callable[..., list[O]],
        items: Sequence[Any],
        undo: Callable[[list[O]], None] | None = None,
    ) -> list[O]:
        """Have ``operation`` carried out for ``items`` and return its answers.

        A caller that is cancelled before its request was taken has changed nothing; one that is
        cancelled later has its answers undone, where they can be.
        """
        request = Request(self._loop, operation, items, undo)
        self.post(request)
        try:
            await request.wait()
        except BaseException:
            self._abandon(request)
            raise
        return request.result()

    def post(self, request: Request[Any]) -> None:
        """Queue a request; from any thread."""
        with self._lock:
            self._pending.append(request)
            if self._scheduled:
                return
            self._scheduled = True
        self._schedule(self._flush)

    def _abandon(self, request: Request[Any]) -> None:
        with self._lock:
            if request in self._pending:
                self._pending.remove(request)
                return
            request.abandoned = True
            done = request.done
        if done:
            _undo(request)

    def _flush(self) -> None:
        with self._lock:
            batch, self._pending = self._pending, []
        if batch:
            self._write(batch)
        with self._lock:
            abandoned = [request for request in batch if request.abandoned]
            again = self._scheduled = bool(self._pending)
        for request in abandoned:
            _undo(request)
        self._loop.call_soon(partial(_wake, batch))
        if again:
            # Behind what else the thread was asked to do, so that reads are not starved.
            self._schedule(self._flush)


def _undo(request: Request[Any]) -> None:
    if request.undo is not None and request.answers:
        request.undo(request.answers)


def _wake(batch: list[Request[Any]]) -> None:
    for request in batch:
        request.wake()


def join(
    batch: Sequence[Request[Any]],
) -> list[tuple[Callable[..., list[Any]], list[Request[Any]]]]:
    """Group neighbours of the same operation, so that one call serves them all."""
    return [(operation, list(group)) for operation, group in groupby(batch, _operation)]


def _operation(request: Request[Any]) -> Callable[..., list[Any]]:
    return request.operation
