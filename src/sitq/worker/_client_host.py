"""The queues of running tasks: they use the open store of the worker, and end with it."""

from __future__ import annotations

import threading
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sitq._portal import refuse_event_loop
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from sitq._hooks import Hooks
    from sitq._loops import LoopRef
    from sitq.ids import TaskId
    from sitq.protocols import Backend, Serializer
    from sitq.queue import QueueClient, SyncQueueClient

__all__ = ["ClientHost"]

_ENDED: Final = "the worker of this task has ended, and the queue of the task with it"
_ENDED_MEANWHILE: Final = "the worker ended during this call, which may have been carried out"
# The longest time until a waiting thread notices that the loop has ended; seconds.
_TURN: Final = 1.0


class ClientHost:
    """Makes the queues of the tasks of one run of a worker, and runs their calls in its loop.

    Args:
        backend: the store.
        serializer: encodes payloads.
        hooks: the worker's extensions.
        loop: the worker's loop.
    """

    def __init__(
        self, backend: Backend, serializer: Serializer, hooks: Hooks, loop: LoopRef
    ) -> None:
        self.backend: Final = backend
        self.serializer: Final = serializer
        self.hooks: Final = hooks
        self._loop: Final = loop
        self._group: TaskGroup | None = None
        # The callers are threads of attempts, whose contexts are not for the tasks of the loop.
        self._context: Final = copy_context()
        self._ended = False
        self._client: QueueClient | None = None
        self._sync_client: SyncQueueClient | None = None

    @property
    def client(self) -> QueueClient:
        """The queue of async functions."""
        if self._client is None:
            # Not loaded where no task enqueues.
            from sitq.queue import QueueClient

            self._client = QueueClient(self)
        return self._client

    @property
    def sync_client(self) -> SyncQueueClient:
        """The queue of plain functions, for any thread."""
        if self._sync_client is None:
            from sitq.queue import SyncQueueClient

            self._sync_client = SyncQueueClient(self)
        return self._sync_client

    def begin(self, group: TaskGroup) -> None:
        """Run calls of threads in a task group from now on."""
        self._group = group

    def end(self) -> None:
        """Refuse every call from now on."""
        self._ended = True

    async def check_loop(self) -> None:
        """Refuse a caller in another event loop, or after the worker's end.

        Raises:
            UsageError: it is one of these.
        """
        self._check_end()
        if not self._loop.is_here:
            raise UsageError(
                "queue_client belongs to the worker's event loop, and this code runs in another "
                "one: call sync_queue_client in the thread of the plain function"
            )

    def check_thread(self) -> None:
        """Refuse a caller that would block an event loop, or that comes after the worker's end.

        Raises:
            UsageError: it is one of these.
        """
        refuse_event_loop("sync_queue_client", "await the methods of queue_client")
        self._check_end()

    def _check_end(self) -> None:
        if self._loop.inherited:
            raise UsageError("the worker of this task runs in the parent of this process")
        if self._ended:
            raise UsageError(_ENDED)

    def run_in_loop(self, work: Callable[[], Awaitable[list[TaskId[Any]]]]) -> list[TaskId[Any]]:
        """Run ``work`` in the worker's loop; block the calling thread until it has ended.

        Raises:
            UsageError: the worker has ended.
            BackendError: the store failed.
        """
        call = _LoopCall(work)
        if not self._loop.call_soon(partial(self._start, call)):
            raise UsageError(_ENDED)
        # Other code may cancel all tasks of the loop, or end it before it has called `_start`.
        while not call.is_over.wait(_TURN):
            if self._ended:
                raise UsageError(_ENDED_MEANWHILE)
        return call.result()

    def _start(self, call: _LoopCall) -> None:
        try:
            if self._group is not None and not self._ended:
                self._context.run(self._group.start_soon, call.run)
                return
        except RuntimeError:
            pass  # the group has ended
        call.is_over.set()


class _LoopCall:
    """A call in the loop, for which a thread waits."""

    def __init__(self, work: Callable[[], Awaitable[list[TaskId[Any]]]]) -> None:
        self._work: Final = work
        self._ids: list[TaskId[Any]] | None = None
        self._error: Exception | None = None
        self.is_over: Final = threading.Event()

    async def run(self) -> None:
        """Make the call; raise only a cancellation and what ends the process."""
        try:
            self._ids = await self._work()
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            self._error = error
        finally:
            self.is_over.set()

    def result(self) -> list[TaskId[Any]]:
        """Return what the call returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        if self._ids is None:
            raise UsageError(_ENDED_MEANWHILE)
        return self._ids
