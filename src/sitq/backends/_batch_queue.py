"""Group commit: requests that wait at the same time are written together.

Callers of one event loop submit requests. One writer, a database thread or a task of a driver's
loop, takes all that are queued; their answers go back to the loop in one call. There is no timer:
a batch is what was queued while the last one was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import anyio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from sitq._loops import LoopRef

__all__ = [
    "BatchQueue",
    "BlockingRequest",
    "Compensate",
    "Request",
    "group_by_operation",
    "operation_of",
    "wake_all",
]

O = TypeVar("O")  # noqa: E741 - what comes out
Compensate = Callable[[list[O]], "Request[Any] | None"]


class Request(Generic[O]):
    """A batch of items for one operation, and a place for the answers.

    ``compensate`` turns the answers into the request that undoes them. It is used if the caller was
    cancelled before it got them.
    """

    __slots__ = (
        "_event",
        "abandoned",
        "answers",
        "compensate",
        "compensating",
        "error",
        "items",
        "operation",
        "settled",
    )

    def __init__(
        self,
        loop: LoopRef,
        operation: Callable[..., Any],
        items: Sequence[Any],
        compensate: Compensate[O] | None = None,
    ) -> None:
        self.operation: Final = operation
        self.items: Final = items
        self.compensate: Final = compensate
        self.answers: list[O] | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.settled = False
        self.compensating = False
        # anyio's event costs several times as much as a bare future.
        self._event: asyncio.Future[None] | anyio.Event = (
            anyio.Event() if loop.asyncio is None else loop.asyncio.create_future()
        )

    async def wait(self) -> None:
        """Return once `wake` has been called."""
        if isinstance(self._event, anyio.Event):
            await self._event.wait()
        else:
            await self._event

    def wake(self) -> None:
        """Wake the caller; in the loop."""
        if isinstance(self._event, anyio.Event):
            self._event.set()
        elif not self._event.done():
            self._event.set_result(None)

    def result(self) -> list[O]:
        """Return the answers."""
        if self.error is not None:
            raise self.error
        return cast("list[O]", self.answers)


class BlockingRequest(Request[O]):
    """A request of a thread that blocks until it is settled.

    Args:
        operation: what to run.
        items: its arguments, one for each answer.
    """

    __slots__ = ("_lock",)

    def __init__(self, loop: LoopRef, operation: Callable[..., Any], items: Sequence[Any]) -> None:
        super().__init__(loop, operation, items)
        self._lock: Final = threading.Lock()
        self._lock.acquire()

    def block(self) -> None:
        """Return once `wake` has been called; a signal handler may raise in between."""
        self._lock.acquire()

    def wake(self) -> None:
        """Wake the blocked thread; from any thread, once."""
        self._lock.release()


class BatchQueue:
    """The queued requests, and which of them still have a caller.

    Args:
        loop: the event loop of all callers.
    """

    def __init__(self, loop: LoopRef) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._pending: list[Request[Any]] = []
        self._scheduled = False

    async def write(
        self,
        operation: Callable[..., Any],
        items: Sequence[Any],
        compensate: Compensate[O] | None = None,
    ) -> list[O]:
        """Run an operation in one batch with other requests; return its answers.

        A caller that is cancelled before the writer has taken its request changes nothing. The
        answers of one that is cancelled later are undone, if ``compensate`` is given.
        """
        request = Request(self._loop, operation, items, compensate)
        try:
            self.post(request)
            await request.wait()
            return request.result()
        except BaseException:
            self._abandon(request)
            raise

    def post(self, request: Request[Any]) -> None:
        """Queue a request; from any thread."""
        begins = False
        try:
            with self._lock:
                self._pending.append(request)
                if self._scheduled:
                    return
                self._scheduled = begins = True
            self._begin()
        except BaseException:
            # A signal handler may raise anywhere. Without a writer, all would wait for ever.
            if begins:
                self._begin()
            raise

    def _begin(self) -> None:
        """Schedule the writer; from any thread. Calling it twice is fine."""
        raise NotImplementedError

    def _abandon(self, request: Request[Any]) -> None:
        with self._lock:
            if request in self._pending:
                self._pending.remove(request)
                return
            request.abandoned = True
            if not request.settled:
                return  # the writer will see it
        if (compensation := _compensation_of(request)) is not None:
            self._post_compensation(compensation)

    def _post_compensation(self, compensation: Request[Any]) -> None:
        self.post(compensation)

    def _take(self) -> list[Request[Any]]:
        """Take all queued requests; for the writer."""
        with self._lock:
            batch, self._pending = self._pending, []
        return batch

    def _settle(self, batch: list[Request[Any]]) -> list[Request[Any]]:
        """Mark a batch as written; return the compensations of requests without a caller."""
        with self._lock:
            for request in batch:
                request.settled = True
            abandoned = [request for request in batch if request.abandoned]
        return [
            compensation for request in abandoned if (compensation := _compensation_of(request))
        ]

    def _more(self) -> bool:
        """Return whether the writer has to go on; if not, the next request schedules it."""
        with self._lock:
            again = self._scheduled = bool(self._pending)
        return again


def _compensation_of(request: Request[Any]) -> Request[Any] | None:
    """Return the request that undoes the answers of a request."""
    if request.compensate is None or not request.answers:
        return None
    return request.compensate(request.answers)


def wake_all(batch: list[Request[Any]]) -> None:
    """Wake the callers of a batch; in the loop."""
    rest = iter(batch)
    try:
        for request in rest:
            request.wake()
    finally:
        for request in rest:  # one that raises must not keep the others waiting
            request.wake()


def group_by_operation(
    batch: Sequence[Request[Any]],
) -> list[tuple[Callable[..., Any], list[Request[Any]]]]:
    """Group neighbours of the same operation, so that one call serves them all."""
    return [(operation, list(group)) for operation, group in groupby(batch, operation_of)]


def operation_of(request: Request[Any]) -> Callable[..., Any]:
    """Return the operation of a request."""
    return request.operation
