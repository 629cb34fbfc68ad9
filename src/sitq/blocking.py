"""The port of stores that a thread without an event loop can enqueue to by itself.

It is optional: to any other store `SyncTaskQueue` enqueues through its event loop, which costs two
changes of threads a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sitq.protocols import Backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.ids import TaskId
    from sitq.models import Task

__all__ = ["BlockingBackend"]


@runtime_checkable
class BlockingBackend(Backend, Protocol):
    """A `Backend` with a second way to enqueue, for threads in which no event loop runs.

    A class that overrides `enqueue` of such a store has to override `enqueue_blocking` too.
    """

    def enqueue_blocking(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Do what `Backend.enqueue` does, and block the calling thread until it is done.

        1. The store is open, in whichever event loop; if not, or if it is closed meanwhile, it
           raises `UsageError`.
        2. Any number of threads may call it at the same time. Calls that wait at the same time are
           written together.
        3. It may be interrupted by what a signal handler raises, a `KeyboardInterrupt` say: the
           tasks are stored then, or not. No other call is harmed.
        4. A signal handler or a finalizer that interrupts such a call in the middle of its
           transaction cannot make another one: it gets a `UsageError`.
        """
        ...
