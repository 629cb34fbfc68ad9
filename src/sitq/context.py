"""The context of a running attempt: `current_task`, progress, and completion in a transaction."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

import pydantic

from sitq._builtin_types import plain
from sitq._loops import run_inline
from sitq._validation import describe
from sitq.errors import LeaseLostError, UsageError, ValidationError
from sitq.models import Progress
from sitq.transactions import TransactionalBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import Lease, ReservedTask
    from sitq.protocols import Backend
    from sitq.queue import QueueClient, SyncQueueClient
    from sitq.transactions import AnyConnection, SyncConnection, Transaction

__all__ = ["CURRENT", "AttemptState", "TaskContext", "TaskServices", "current_task"]

T = TypeVar("T")


class TaskServices(Protocol):
    """What a worker does for its attempts."""

    @property
    def worker_id(self) -> str:
        """The id of this run of the worker."""

    @property
    def backend(self) -> Backend:
        """Return the place where a task completes itself."""

    @property
    def note(self) -> Callable[[Lease, Progress], object]:
        """Takes the progress that a task reports, from any thread."""

    @property
    def shared(self) -> Callable[[Callable[[], Any]], Any]:
        """Returns the open resource of a factory; any thread may call it."""

    @property
    def queue_client(self) -> QueueClient:
        """The queue of async functions on the worker's store."""

    @property
    def sync_queue_client(self) -> SyncQueueClient:
        """The queue of plain functions on the worker's store."""

    def encode(self, task: ReservedTask, lease: Lease, function: Any, value: object) -> bytes:
        """Return the value of a success as it is stored.

        Args:
            task: what is attempted.
            lease: its lease.
            function: the task's function, as its worker holds it.
            value: what the task returns.
        """


class AttemptState:
    """What changes while an attempt runs: the worker writes it, and `TaskContext` reads it."""

    __slots__ = ("cancel_requested", "completed", "deadline")

    def __init__(self) -> None:
        self.cancel_requested: bool = False
        # True once the task has completed itself in a transaction, committed or not.
        self.completed: bool = False
        self.deadline: datetime | None = None


class TaskContext:
    """The attempt that the calling code runs in."""

    __slots__ = ("_function", "_lease", "_services", "_state", "_task")

    def __init__(
        self,
        task: ReservedTask,
        lease: Lease,
        function: object,
        services: TaskServices,
        state: AttemptState,
    ) -> None:
        self._task: Final = task
        self._lease: Final = lease
        self._function: Final = function
        self._services: Final = services
        self._state: Final = state

    def __repr__(self) -> str:
        return f"TaskContext(id={self.id!r}, function={self.function!r}, attempt={self.attempt})"

    @property
    def id(self) -> TaskId[Any]:
        """Return the task's id: the idempotency key of what the task does."""
        return self._task.id

    @property
    def function(self) -> str:
        """Return the function's stored name."""
        return self._task.function

    @property
    def queue(self) -> str:
        """Return the queue that the task came from."""
        return self._task.queue

    @property
    def attempt(self) -> int:
        """Return the number of this attempt; 1 for the first."""
        return self._task.attempt

    @property
    def worker_id(self) -> str:
        """The id of the worker that runs the attempt, as its log lines and `WorkerInfo` have it.

        It is new whenever a worker starts.
        """
        return self._services.worker_id

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers that were stored with the task."""
        return self._task.headers

    @property
    def lease(self) -> Lease:
        """Return the lease that the attempt runs under: the task's id, and the fencing token."""
        return self._lease

    @property
    def queue_client(self) -> QueueClient:
        """A queue on the worker's store, for async functions: `enqueue`, `enqueue_many`, `options`.

        It uses the store that the worker has opened, its serializer and its extensions, and needs
        no ``async with``. Once the worker has ended, and in another event loop than the worker's,
        its methods raise `UsageError`.
        """
        return self._services.queue_client

    @property
    def sync_queue_client(self) -> SyncQueueClient:
        """The same queue for plain functions: its methods block, and any thread may call them.

        In a thread that runs an event loop, and once the worker has ended, they raise `UsageError`.
        """
        return self._services.sync_queue_client

    @property
    def cancel_requested(self) -> bool:
        """Return whether the attempt is to end.

        It is cancelled, out of time or shut down, or its lease is lost.

        A plain function checks it. If the task was cancelled, raising makes it ``cancelled``, and
        a returned value counts as its result.
        """
        return self._state.cancel_requested

    @property
    def deadline(self) -> datetime | None:
        """Return when the attempt's timeout ends it (UTC); ``None``: there is no timeout."""
        return self._state.deadline

    @property
    def completed(self) -> bool:
        """Return whether the task has completed itself in a transaction, committed or not."""
        return self._state.completed

    @overload
    def shared(self, factory: Callable[[], AbstractAsyncContextManager[T]]) -> T: ...
    @overload
    def shared(self, factory: Callable[[], AbstractContextManager[T]]) -> T: ...
    @overload
    def shared(self, factory: Callable[[], Awaitable[T]]) -> T: ...
    @overload
    def shared(self, factory: Callable[[], T]) -> T: ...
    def shared(self, factory: Callable[[], Any]) -> Any:
        """Return a resource of the worker: the same object for all its tasks, in threads too.

        Args:
            factory: one of those given as ``Worker(resources=[...])``.

        Raises:
            UsageError: the worker does not have it.
        """
        return self._services.shared(factory)

    async def complete_in(self, connection: AnyConnection, value: object = None) -> None:
        """Record this task's success within the open transaction of a connection of yours.

        If the transaction commits, the task has succeeded, in one moment with what else was
        written in it; whatever the function does after that changes nothing. If it does not, the
        attempt has failed. Its lease is checked in the transaction, so of all executions at most
        one commits. End the transaction soon: while it is open, the lease is not renewed.

        Args:
            connection: it leads to the store's own database; see `TaskQueue.bind`.
            value: what the task returns; what the function itself returns does not count then.

        Raises:
            LeaseLostError: another attempt is the current one, or the task has completed itself
                already: let the transaction roll back.
            ValidationError: the value is not what the function's annotation says.
            SerializationError: the value cannot be carried.
            UsageError: the store cannot write through this connection.
            BackendError: the store failed.
        """
        await self._complete(self._join(connection), value)

    def complete_in_sync(self, connection: SyncConnection, value: object = None) -> None:
        """Record this task's success as `complete_in` does, over a connection that blocks.

        Args:
            connection: it leads to the store's own database; see `SyncTaskQueue.bind`.
            value: what the task returns; what the function itself returns does not count then.

        Raises:
            UsageError: the connection has to be awaited, or the store cannot write through it.
            LeaseLostError: another attempt is the current one, or the task has completed itself
                already: let the transaction roll back.
            ValidationError: the value is not what the function's annotation says.
            SerializationError: the value cannot be carried.
            BackendError: the store failed.
        """
        transaction = self._join(connection)
        if not transaction.blocking:
            hint = "await complete_in(...) of an async function, or use a connection that blocks"
            raise UsageError(f"complete_in_sync: this connection has to be awaited: {hint}")
        run_inline(self._complete(transaction, value))

    def _join(self, connection: AnyConnection) -> Transaction:
        backend = self._services.backend
        if not isinstance(backend, TransactionalBackend):
            message = f"complete_in: {backend!r} cannot write within a transaction of yours"
            raise UsageError(message)
        return backend.join(connection)

    async def _complete(self, transaction: Transaction, value: object) -> None:
        data = self._services.encode(self._task, self._lease, self._function, value)
        if await transaction.complete(self.lease, data):
            self._state.completed = True
        else:
            again = ", or the task has completed itself already" if self._state.completed else ""
            raise LeaseLostError(
                f"task {self.id}: the lease of epoch {self.lease.epoch} is lost{again}; "
                "let the transaction roll back"
            )

    def progress(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report how far the task is; the last call counts.

        It never waits, and any thread may call it.

        Args:
            done: units done, 0 to 2**63 - 1.
            total: units in all, where known.
            note: a short text, at most 1,000 characters.

        Raises:
            ValidationError: a value is out of its range or of the wrong type.
        """
        try:
            progress = Progress(done=plain(done), total=plain(total), note=plain(note))
        except pydantic.ValidationError as error:
            raise ValidationError(f"progress: {describe(error)}") from None
        self._services.note(self.lease, progress)


CURRENT: Final[ContextVar[TaskContext]] = ContextVar("sitq_current_task")


def current_task() -> TaskContext:
    """Return the attempt that the calling code runs in, in async and plain functions alike.

    Raises:
        UsageError: the caller is not run by a worker.
    """
    try:
        return CURRENT.get()
    except LookupError:
        message = "current_task() works only inside a function that a sitq worker runs"
        raise UsageError(message) from None
