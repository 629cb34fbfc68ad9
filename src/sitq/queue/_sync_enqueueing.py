"""Enqueueing from code with no event loop, while the calling thread is blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, overload

from sitq._loops import run_inline
from sitq.queue._enqueueing import OptionsMethod, Producer
from sitq.queue._options import NO_OPTIONS, take_eta

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.payload.registry import Call
    from sitq.protocols import BlockingBackend
    from sitq.queue._enqueueing import AnyFunction, AsyncFunction
    from sitq.queue._options import Options

__all__ = [
    "SyncBoundQueue",
    "SyncEnqueueMethods",
    "SyncTransactionQueue",
    "do_nothing",
    "store_here",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _InlineQueue:
    """A queue that stores calls under some options, while the calling thread is blocked.

    Args:
        producer: makes and stores the tasks; its coroutines never suspend.
        check: refuses a caller that must not be blocked.
        options: the options of all of them.
    """

    def __init__(
        self, producer: Producer, check: Callable[[], None], options: Options = NO_OPTIONS
    ) -> None:
        self._producer: Final = producer
        self._check: Final = check
        self._options: Final = options

    def enqueue_many(self, calls: Iterable[Call[R]]) -> list[TaskId[R]]:
        """See `TaskQueue.enqueue_many`."""
        self._check()
        return _run(self._producer.enqueue_many(calls, self._options))


class SyncBoundQueue(_InlineQueue):
    """A queue with options, from `SyncTaskQueue.options`; every keyword goes to the function."""

    def __repr__(self) -> str:
        return f"SyncBoundQueue({self._producer.backend!r}, {self._options!r})"

    @overload
    def enqueue(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    @overload
    def enqueue(
        self, func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """See `BoundQueue.enqueue`."""
        self._check()
        return _run(self._producer.enqueue(func, args, kwargs, self._options))


class SyncEnqueueMethods(_InlineQueue, OptionsMethod[SyncBoundQueue]):
    """The methods that a queue and a queue bound to a transaction have in common."""

    def _bound(self, options: Options) -> SyncBoundQueue:
        self._check()
        return SyncBoundQueue(self._producer, self._check, options)

    @overload
    def enqueue(
        self, func: AsyncFunction[R], /, *args: object, eta: datetime | None, **kwargs: object
    ) -> TaskId[R]: ...
    @overload
    def enqueue(
        self, func: AnyFunction[R], /, *args: object, eta: datetime | None, **kwargs: object
    ) -> TaskId[R]: ...
    @overload
    def enqueue(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    @overload
    def enqueue(
        self, func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """See `TaskQueue.enqueue`."""
        self._check()
        options = take_eta(func, kwargs) if "eta" in kwargs else NO_OPTIONS
        return _run(self._producer.enqueue(func, args, kwargs, options))


class SyncTransactionQueue(SyncEnqueueMethods):
    """A queue within a transaction of the user's, from `SyncTaskQueue.bind`."""

    def __repr__(self) -> str:
        return f"SyncTransactionQueue({self._producer.backend!r})"


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the producer; only an extension can make it suspend."""
    return run_inline(
        work,
        "around_enqueue of an extension waits for something other than call_next, but "
        "the call is made in a thread without an event loop",
    )


async def do_nothing() -> None:
    """Let nothing else run: there is no event loop."""


async def store_here(backend: BlockingBackend, tasks: Sequence[Task]) -> list[TaskId[Any]]:
    """Store tasks in the caller's thread."""
    return backend.enqueue_blocking(tasks)
