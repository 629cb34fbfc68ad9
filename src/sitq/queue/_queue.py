"""`TaskQueue`: enqueue tasks, and get at their results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from sitq._argument_checks import checked_backend, checked_serializer
from sitq._hooks import Hooks
from sitq._validation import check_seconds
from sitq.administration import AdminBackend
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import (
    SerializationError,
    TaskFailedError,
    TaskNotFoundError,
    UsageError,
    ValidationError,
)
from sitq.ids import TaskId
from sitq.models import Result
from sitq.payload._stored_form import without_names
from sitq.payload.functions import NOT_STORED
from sitq.payload.registry import default_registry
from sitq.payload.signing import unseal_result
from sitq.queue._enqueueing import EnqueueMethods, Producer, TransactionQueue, joined
from sitq.queue._store_client import StoreClient
from sitq.queue._task_factory import TaskFactory, make_repeat
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sitq.extensions import Extension
    from sitq.models import Task, TaskInfo
    from sitq.protocols import Backend, Serializer
    from sitq.transactions import AnyConnection

__all__ = ["TaskQueue", "checked_id"]

# ruff: noqa: ASYNC109 - timeouts are counted by the backend's clock, not by the loop's

R = TypeVar("R")

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PRUNE_BATCH: Final = 1000


class TaskQueue(StoreClient, EnqueueMethods):
    """Stores tasks for workers and reads their results. For asyncio and trio.

    Use it as ``async with queue:``, or call `connect` and `close`. The first use connects by
    itself. One queue may be used by any number of tasks of one event loop.

    Args:
        backend: the store; ``None``: ``SQLiteBackend("sitq.db")``.
        serializer: how payloads are encoded; the workers must use the same. ``None``: msgpack.
        extensions: what is called around each enqueue and hears of it, in this order.

    Raises:
        ValidationError: ``backend`` is not a store, ``serializer`` not a serializer, or one of
            ``extensions`` not an extension.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        extensions: Iterable[Extension] = (),
    ) -> None:
        self._backend: Final[Backend] = (
            SQLiteBackend() if backend is None else checked_backend(backend)
        )
        self._serializer: Final = checked_serializer(serializer)
        StoreClient.__init__(self, self._backend)
        self._hooks: Final = Hooks(extensions)
        seals = not self._hooks.of_queue
        factory = TaskFactory(self._backend.clock, self._serializer, seals=seals)
        use, store = self._handle.use, self._backend.enqueue
        producer = Producer(self._backend, factory, use, store, hooks=self._hooks)
        EnqueueMethods.__init__(self, producer)

    def __repr__(self) -> str:
        return f"TaskQueue({self._backend!r})"

    def bind(self, connection: AnyConnection) -> TransactionQueue:
        """Return a queue that stores through an open connection of yours, in its transaction.

        The tasks exist if and only if your transaction commits; workers are woken after that.
        What is returned has `enqueue`, `enqueue_many` and `options`. A connection that blocks is
        used at once, in the thread of the caller.

        Args:
            connection: a connection to the store's own database, with a transaction that is open
                or opens with the next statement.

        Raises:
            UsageError: the store cannot write through a connection of this kind. Everything
                else about the connection is checked by the first enqueue.
        """
        transaction = joined(self._backend, connection)
        producer = Producer(
            self._backend,
            self._producer.factory,
            self._handle.use,
            transaction.enqueue,
            hooks=self._hooks,
            emits=False,
        )
        return TransactionQueue(producer)

    @overload
    async def get_result(
        self, task_id: TaskId[R], timeout: float | None = None
    ) -> Result[R] | None: ...
    @overload
    async def get_result(
        self, task_id: str, timeout: float | None = None
    ) -> Result[object] | None: ...
    async def get_result(self, task_id: str, timeout: float | None = None) -> Result[Any] | None:
        """Wait until a task is final and return its result; ``None``: it is not final yet.

        Args:
            task_id: the id that `enqueue` returned.
            timeout: seconds to wait; ``None``: for ever; 0: look once. If the store has said
                nothing at all by then, it has 5 more seconds to answer one look.

        Raises:
            TaskNotFoundError: the store does not know the task (any more).
            SerializationError: with keys: the result's signature is missing, or does not match.
            ValidationError: ``timeout`` is not a number of seconds.
            BackendError: the store could not be asked. One that is busy is asked again.
            BackendBusyError: it was busy until the timeout, or does not answer.
            UsageError: the queue is closed, or was closed meanwhile.
        """
        known_id = checked_id(task_id)
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        waiters = await self._handle.waiters()
        wait = waiters.wait(known_id, seconds) if seconds != 0 else waiters.look(known_id)
        result = await wait
        return None if result is None else unseal_result(self._serializer, result)

    @overload
    async def result(self, task_id: TaskId[R], timeout: float | None = None) -> R: ...
    @overload
    async def result(self, task_id: str, timeout: float | None = None) -> object: ...
    async def result(self, task_id: str, timeout: float | None = None) -> Any:
        """Wait until a task is final and return the value that its function returned.

        This is `get_result` and `deserialize_result` in one.

        Args:
            task_id: the id that `enqueue` returned.
            timeout: seconds to wait; ``None``: for ever; 0: look once. It has the bounds of
                `get_result`.

        Raises:
            TaskFailedError: the task did not succeed; error and remote traceback are in the text.
            TimeoutError: the builtin one: the task is not final yet. It goes on.
            TaskNotFoundError: the store does not know the task (any more).
            SerializationError: the stored value cannot be decoded.
            ValidationError: ``timeout`` is not a number of seconds.
            BackendError: the store could not be asked.
            UsageError: the queue is closed, or was closed meanwhile.
        """
        result = await self.get_result(task_id, timeout)
        if result is None:
            waited = "was asked for" if timeout == 0 else f"was waited for {timeout:g} seconds"
            raise TimeoutError(f"task {task_id} is not final yet; it {waited}")
        return self.deserialize_result(result)

    def deserialize_result(self, result: Result[R]) -> R:
        """Return the value that the task's function returned, with its original type.

        If this process does not know the function (it neither enqueued it nor marked it with
        ``@task``), models, dataclasses and NamedTuples come back as plain dicts, and members of
        enums as their values. The value is ``None`` if the function is marked with
        ``@task(store_result=False)``.

        Args:
            result: what `get_result` returned.

        Raises:
            TaskFailedError: the task did not succeed; error and remote traceback are in the text.
            SerializationError: the stored value cannot be decoded, or its signature is missing or
                does not match.
            ValidationError: ``result`` is not a result, or what the task returned does not fit the
                function here (any more): a model may have a field that this version does not know.
        """
        given: object = result
        if not isinstance(given, Result):
            hint = "give what get_result returned; None means that the task is not final yet"
            raise ValidationError(f"result: {hint} (got {type(given).__name__})")
        result = unseal_result(self._serializer, result)
        if result.status is not TaskStatus.SUCCESS:
            raise TaskFailedError(_account_of(result))
        if result.value is None:
            raise SerializationError(f"task {result.task_id}: the store holds no value for it")
        function = default_registry.get(result.function)
        if function is None:
            if result.value == NOT_STORED:
                return cast("R", None)
            return cast("R", without_names(self._serializer.loads(result.value)))
        return cast("R", function.load_result(self._serializer, result.value))

    async def get_task(self, task_id: str) -> TaskInfo:
        """Return what the store knows about a task, in any state.

        Args:
            task_id: the id that `enqueue` returned.

        Raises:
            TaskNotFoundError: the store does not know the task.
            ValidationError: ``task_id`` is not a text.
            BackendError: the store could not be asked.
            UsageError: the queue is closed.
        """
        known_id = checked_id(task_id)
        await self._handle.use()
        info = (await self._backend.get_tasks((known_id,)))[0]
        if info is None:
            raise TaskNotFoundError(f"no task {known_id}: it was never stored, or has been pruned")
        return info

    async def cancel(self, task_id: str) -> bool:
        """End a task: one that waits never starts, one that runs is asked to end.

        A running async function is cancelled; a plain one sees ``current_task().cancel_requested``.
        If it raises after that, the status is ``cancelled``; if it returns all the same, its value
        counts and the status is ``success``. It never starts again.

        Args:
            task_id: the id that `enqueue` returned.

        Returns:
            True if the task was not final yet; False if it was: nothing has changed.

        Raises:
            TaskNotFoundError: the store does not know the task.
            ValidationError: ``task_id`` is not a text.
            BackendError: the store could not do it.
            UsageError: the queue is closed.
        """
        known_id = checked_id(task_id)
        await self._handle.use()
        return await self._backend.cancel(known_id)

    @overload
    async def retry(self, task_id: TaskId[R]) -> TaskId[R]: ...
    @overload
    async def retry(self, task_id: str) -> TaskId[object]: ...
    async def retry(self, task_id: str) -> TaskId[Any]:
        """Enqueue a final task once more, as a new task that is due at once.

        The new one has the function, arguments and options of the old one, but no eta and no
        expiry.

        Args:
            task_id: the id of the old task.

        Returns:
            The id of the new task. If the unique key of the old one is held again: the id of the
            task that holds it.

        Raises:
            TaskNotFoundError: the store does not know the task.
            ValidationError: ``task_id`` is not a text.
            UsageError: the task is not final, or the queue is closed.
            SerializationError: the task's signature is missing, or does not match.
            BackendError: the store could not do it.
        """
        info = await self.get_task(task_id)
        if not info.status.is_final:
            hint = "only a final task can be retried; wait for its result, or cancel it first"
            raise UsageError(f"task {info.task_id} is {info.status}: {hint}")
        old = await self._backend.load_task(info.task_id)
        repeat = make_repeat(self._serializer, old)
        (new,) = await self._producer.store_through(self._store_repeat, (repeat,))
        return new

    async def _store_repeat(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        if isinstance(self._backend, AdminBackend):
            (new,) = await self._backend.retry_tasks(tasks, again=True)
            if new is not None:
                return [new]
        return await self._backend.enqueue(tasks)

    async def prune(self, older_than: float) -> int:
        """Remove final tasks and their results, whatever their own time to live.

        Args:
            older_than: seconds since a task's end.

        Returns:
            How many tasks were removed.

        Raises:
            ValidationError: ``older_than`` is not a number of seconds.
            BackendError: the store could not do it; what was removed before stays removed.
            UsageError: the queue is closed.
        """
        seconds = check_seconds("older_than", older_than)
        await self._handle.use()
        total = 0
        while True:
            removed = await self._backend.prune(seconds, _PRUNE_BATCH)
            total += removed
            if removed < _PRUNE_BATCH:
                return total


def checked_id(task_id: object) -> TaskId[Any]:
    """Return the id as a plain text."""
    if not isinstance(task_id, str):
        hint = "give the id that enqueue returned, or its text"
        raise ValidationError(f"task_id: {hint} (got {type(task_id).__name__})")
    text = str.__str__(task_id)  # of a subclass too, without a method of its own
    if not _ID.fullmatch(text):
        hint = "ids look like 0190f5e2-7c3a-7bbb-8000-0123456789ab"
        raise TaskNotFoundError(f"task_id: this text is not the id of any task; {hint}")
    return TaskId(text)


def _account_of(result: Result[Any]) -> str:
    """Return the text of the error for a task that did not succeed."""
    end = f"task {result.task_id} ({result.function}) ended as {result.status}"
    lines = [f"{end}: {result.error}" if result.error else end]
    if result.traceback:
        lines.append(result.traceback.rstrip())
    return "\n".join(lines)
