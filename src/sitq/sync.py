"""`SyncTaskQueue`: a `TaskQueue` for code with no event loop, over a loop in its own thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, overload

import anyio

from sitq._argument_checks import checked_serializer
from sitq._hooks import Hooks
from sitq._portal import Portal, PortalClient, refuse_event_loop
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import UsageError
from sitq.models import DEFAULT_QUEUE
from sitq.protocols import BlockingBackend
from sitq.queue import TaskQueue
from sitq.queue._enqueueing import Producer, joined
from sitq.queue._sync_enqueueing import (
    SyncBoundQueue,
    SyncEnqueueMethods,
    SyncTransactionQueue,
    do_nothing,
    store_here,
)
from sitq.queue._task_factory import TaskFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType

    from sitq.extensions import Extension
    from sitq.ids import TaskId
    from sitq.models import Result, RetryPolicy, Task, TaskInfo
    from sitq.protocols import Backend, Serializer
    from sitq.queue._enqueueing import Store
    from sitq.transactions import SyncConnection

__all__ = ["SyncBoundQueue", "SyncEnqueueMethods", "SyncTaskQueue", "SyncTransactionQueue"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class SyncTaskQueue(PortalClient, SyncEnqueueMethods):
    """The methods of `TaskQueue` for code with no event loop; any number of threads may share it.

    Use it as ``with SyncTaskQueue(backend) as queue:``, or call `connect` and `close`. The first
    use connects by itself. In a thread that runs an event loop each method raises `UsageError`.
    A queue that is collected as garbage closes by itself.

    Args:
        backend: the store, for this queue alone; ``None``: ``SQLiteBackend("sitq.db")``.
        serializer: how payloads are encoded; the workers must use the same. ``None``: msgpack.
        extensions: what is called around each enqueue and hears of it, in this order. The calls
            are made in the caller's thread, which has no event loop: their ``around_enqueue`` may
            await ``call_next`` and nothing that waits. Only that of a `retry` runs in the queue's
            own thread, in its event loop.

    Raises:
        ValidationError: ``backend`` is not a backend, or one of ``extensions`` not an extension.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        extensions: Iterable[Extension] = (),
    ) -> None:
        self._backend: Final = SQLiteBackend() if backend is None else backend
        self._serializer: Final = serializer
        self._hooks: Final = Hooks(extensions)
        self._extensions: Final = self._hooks.extensions
        self._queue: Final = TaskQueue(self._backend, serializer, extensions=self._extensions)
        # The drains that run, by the event of their end; for the portal's loop.
        self._drains: Final[dict[anyio.Event, anyio.CancelScope]] = {}
        portal = Portal(partial(_end, self._queue, self._drains))
        PortalClient.__init__(self, portal, self._queue.connect)
        self._factory: Final = TaskFactory(
            self._backend.clock,
            checked_serializer(serializer),
            seals=not self._hooks.of_queue,
        )
        check = portal.check
        if isinstance(self._backend, BlockingBackend):
            check = refuse_event_loop  # the store itself refuses what was opened before a fork
            store = partial(store_here, self._backend)
        else:
            store = partial(_store, portal, self._backend)
        self._use: Final = partial(_use, portal, self._queue)
        SyncEnqueueMethods.__init__(self, self._producing(store), check)

    def __repr__(self) -> str:
        return f"Sync{self._queue!r}"

    def bind(self, connection: SyncConnection) -> SyncTransactionQueue:
        """See `TaskQueue.bind`; a connection that must be awaited raises `UsageError`."""
        transaction = joined(self._backend, connection)
        if not transaction.blocking:
            raise UsageError("bind: this connection has to be awaited: use TaskQueue.bind")
        self._portal.run(self._queue.connect)
        producer = self._producing(transaction.enqueue, emits=False)
        return SyncTransactionQueue(producer, self._portal.check)

    def _producing(self, store: Store, *, emits: bool = True) -> Producer:
        return Producer(
            self._backend,
            self._factory,
            self._use,
            store,
            hooks=self._hooks,
            emits=emits,
            pause=do_nothing,
        )

    @overload
    def get_result(self, task_id: TaskId[R], timeout: float | None = None) -> Result[R] | None: ...
    @overload
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[object] | None: ...
    def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None:
        """See `TaskQueue.get_result`, whose timeout has the same bounds."""
        return self._portal.run(partial(self._queue.get_result, task_id, timeout))

    @overload
    def result(self, task_id: TaskId[R], timeout: float | None = None) -> R: ...
    @overload
    def result(self, task_id: str, timeout: float | None = None) -> object: ...
    def result(self, task_id: str, timeout: float | None = None) -> Any:
        """See `TaskQueue.result`, whose timeout has the same bounds."""
        return self._portal.run(partial(self._queue.result, task_id, timeout))

    def deserialize_result(self, result: Result[R]) -> R:
        """See `TaskQueue.deserialize_result`."""
        self._portal.check()
        return self._queue.deserialize_result(result)

    def get_task(self, task_id: str) -> TaskInfo:
        """See `TaskQueue.get_task`."""
        return self._portal.run(partial(self._queue.get_task, task_id))

    def cancel(self, task_id: str) -> bool:
        """See `TaskQueue.cancel`."""
        return self._portal.run(partial(self._queue.cancel, task_id))

    @overload
    def retry(self, task_id: TaskId[R]) -> TaskId[R]: ...
    @overload
    def retry(self, task_id: str) -> TaskId[object]: ...
    def retry(self, task_id: str) -> TaskId[Any]:
        """See `TaskQueue.retry`."""
        return self._portal.run(partial(self._queue.retry, task_id))

    def prune(self, older_than: float) -> int:
        """See `TaskQueue.prune`."""
        return self._portal.run(partial(self._queue.prune, older_than))

    def drain(
        self,
        *,
        tasks: Iterable[ModuleType | Callable[..., object]] | None = None,
        queues: Sequence[str] | Literal["*"] = (DEFAULT_QUEUE,),
        max_concurrency: int = 10,
        retry: RetryPolicy | None = None,
        lease: float = 30.0,
        resources: Iterable[Callable[[], object]] = (),
    ) -> int:
        """Run tasks until none is due any more, in the queue's own thread; for tests and scripts.

        A `Worker` of this queue's store runs them, with these arguments and the queue's extensions,
        and is drained: see `Worker.drain`. Async functions run on the asyncio loop of that thread,
        plain ones in other threads, where they may use this queue.

        Args:
            tasks: modules and functions that may run, besides those that this process enqueued.
            queues: the names of the queues to serve; ``"*"``: every queue.
            max_concurrency: how many tasks may run at the same time.
            retry: the retry policy of tasks that have none of their own.
            lease: seconds after which a task is taken back from a worker that died or hung.
            resources: the factories of what the tasks share; see `Worker`.

        Returns:
            How many attempts were started.

        Raises:
            ValidationError: an argument is out of its range or of the wrong type.
            BackendError: the store failed.
            UsageError: the queue is closed, or was closed meanwhile.
        """
        from sitq.worker import Worker

        self._portal.check()
        worker = Worker(
            self._backend,
            self._serializer,
            tasks=tasks,
            queues=queues,
            max_concurrency=max_concurrency,
            retry=retry,
            lease=lease,
            extensions=self._extensions,
            resources=resources,
        )

        async def work() -> int:
            await self._queue.connect()
            ended = anyio.Event()
            with anyio.CancelScope() as scope:
                self._drains[ended] = scope
                try:
                    return await worker.drain()
                finally:
                    del self._drains[ended]
                    ended.set()
            raise UsageError("the queue was closed during this call")

        return self._portal.run(work)


async def _use(portal: Portal, queue: TaskQueue) -> None:
    """Open the store if it is not open yet."""
    if not portal.is_connected:
        portal.connect(queue.connect)


async def _store(portal: Portal, backend: Backend, tasks: Sequence[Task]) -> list[TaskId[Any]]:
    """Store tasks through the loop."""
    return portal.run(partial(backend.enqueue, tasks))


async def _end(queue: TaskQueue, drains: dict[anyio.Event, anyio.CancelScope]) -> None:
    """End the drains, which hand their tasks back, and close the queue."""
    for ended, scope in list(drains.items()):
        scope.cancel()
        await ended.wait()
    await queue.close()
