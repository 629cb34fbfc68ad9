"""The queues of running tasks, on the open store of their worker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sitq.protocols import BlockingBackend
from sitq.queue._enqueueing import EnqueueMethods, Producer
from sitq.queue._sync_enqueueing import SyncEnqueueMethods, do_nothing, store_here
from sitq.queue._task_factory import TaskFactory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq._hooks import Hooks
    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.protocols import Backend, Serializer

__all__ = ["ClientHost", "QueueClient", "SyncQueueClient"]


class ClientHost(Protocol):
    """What the run of a worker does for the queues of its tasks."""

    @property
    def backend(self) -> Backend:
        """The store, which the worker has opened."""

    @property
    def serializer(self) -> Serializer:
        """Encodes payloads."""

    @property
    def hooks(self) -> Hooks:
        """The worker's extensions."""

    async def check_loop(self) -> None:
        """Refuse a caller in another event loop, or after the worker's end."""

    def check_thread(self) -> None:
        """Refuse a caller that would block an event loop, or that comes after the worker's end."""

    def run_in_loop(self, work: Callable[[], Awaitable[list[TaskId[Any]]]]) -> list[TaskId[Any]]:
        """Run ``work`` in the worker's loop; block the calling thread until it has ended."""


class QueueClient(EnqueueMethods):
    """The queue of an async task on its worker's store: ``current_task().queue_client``.

    Args:
        host: the run of the worker.
    """

    def __init__(self, host: ClientHost) -> None:
        backend, hooks = host.backend, host.hooks
        factory = TaskFactory(backend.clock, host.serializer, seals=not hooks.of_queue)
        producer = Producer(backend, factory, host.check_loop, backend.enqueue, hooks=hooks)
        super().__init__(producer)

    def __repr__(self) -> str:
        return f"QueueClient({self._producer.backend!r})"


class SyncQueueClient(SyncEnqueueMethods):
    """The queue of a plain task on its worker's store: ``current_task().sync_queue_client``.

    Args:
        host: the run of the worker.
    """

    def __init__(self, host: ClientHost) -> None:
        backend, hooks = host.backend, host.hooks
        factory = TaskFactory(backend.clock, host.serializer, seals=not hooks.of_queue)
        if isinstance(backend, BlockingBackend):
            store = partial(store_here, backend)
        else:
            store = partial(_store_in_loop, host)
        producer = Producer(backend, factory, do_nothing, store, hooks=hooks, pause=do_nothing)
        super().__init__(producer, host.check_thread)

    def __repr__(self) -> str:
        return f"SyncQueueClient({self._producer.backend!r})"


async def _store_in_loop(host: ClientHost, tasks: Sequence[Task]) -> list[TaskId[Any]]:
    return host.run_in_loop(partial(host.backend.enqueue, tasks))
