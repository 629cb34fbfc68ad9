"""Enqueueing: store the tasks of calls in a transaction of sitq's or the user's own."""

from __future__ import annotations

from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    overload,
)

from anyio.lowlevel import checkpoint

from sitq._hooks import NO_HOOKS
from sitq._logging import Log, fields_of
from sitq._task_batch import concat
from sitq.context import CURRENT
from sitq.errors import UsageError
from sitq.queue._options import NO_OPTIONS, Options, make_options, take_eta
from sitq.queue._task_factory import CHUNK
from sitq.transactions import TransactionalBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from sitq._hooks import Hooks
    from sitq.ids import TaskId
    from sitq.models import RetryPolicy, Task
    from sitq.payload.registry import Call
    from sitq.protocols import Backend
    from sitq.queue._task_factory import TaskFactory
    from sitq.transactions import AnyConnection, Transaction

    Store: TypeAlias = Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]]
    AsyncFunction: TypeAlias = Callable[..., Awaitable["R"]]
    AnyFunction: TypeAlias = Callable[..., Awaitable["R"] | "R"]

__all__ = [
    "BoundQueue",
    "EnqueueMethods",
    "OptionsMethod",
    "Producer",
    "TransactionQueue",
    "joined",
]

P = ParamSpec("P")
R = TypeVar("R")
B = TypeVar("B")

_logger: Final = Log(__name__)


class Producer:
    """Makes tasks of calls and stores them; nothing is stored unless all of them can be.

    Args:
        backend: the store, for a ``repr``.
        factory: makes the tasks.
        use: makes sure that the store is open.
        store: stores tasks and returns their ids.
        hooks: the extensions of the queue.
        emits: False: what is stored is not certain yet, so there is no event.
        pause: lets other tasks of the loop run in the middle of a long batch.
    """

    def __init__(
        self,
        backend: Backend,
        factory: TaskFactory,
        use: Callable[[], Awaitable[object]],
        store: Store,
        *,
        hooks: Hooks = NO_HOOKS,
        emits: bool = True,
        pause: Callable[[], Awaitable[None]] = checkpoint,
    ) -> None:
        self.backend: Final = backend
        self.factory: Final = factory
        self._use: Final = use
        self._hooks: Final = hooks
        self._emits: Final = emits and hooks.listen
        # Without extensions the factory has sealed the tasks.
        self._store: Final = partial(self.store_through, store) if hooks.of_queue else store
        self._pause: Final = pause

    async def enqueue(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
    ) -> TaskId[Any]:
        """Store one call."""
        tasks = self.factory.make(func, args, kwargs, options)
        await self._use()
        ids = await self._store(tasks)
        if options.unique_key is not None:
            _warn_of_own_key(ids)
        return ids[0]

    async def enqueue_many(self, calls: Iterable[Call[Any]], options: Options) -> list[TaskId[Any]]:
        """Store calls, all or none."""
        batches: list[Sequence[Task]] = []
        for batch in self.factory.make_many(calls, options):
            batches.append(batch)
            if len(batch) == CHUNK:
                await self._pause()
        await self._use()
        if not batches:
            return []
        ids = await self._store(concat(batches))
        if options.unique_key is not None:
            _warn_of_own_key(ids)
        return ids

    async def store_through(self, store: Store, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Store tasks that are not sealed, through the extensions."""
        final = tasks

        async def seal_and_store(tasks: Sequence[Task]) -> list[TaskId[Any]]:
            nonlocal final
            final = tasks
            if not self.factory.may_seal:
                return await store(tasks)
            sealed: list[Task] = []
            for start in range(0, len(tasks), CHUNK):
                if start:
                    await self._pause()
                sealed += self.factory.seal(tasks[start : start + CHUNK])
            return await store(sealed)

        around = self._hooks.around_enqueue
        if around:
            from sitq.queue._around_enqueue import through_extensions

            ids = await through_extensions(around, seal_and_store)(tuple(tasks))
        else:
            ids = await seal_and_store(tasks)
        if self._emits:
            self._emit(final, ids)
        return ids

    def _emit(self, tasks: Sequence[Task], ids: list[TaskId[Any]]) -> None:
        from sitq.extensions import TaskEnqueued

        for task, task_id in zip(tasks, ids, strict=True):
            if task_id == task.id:  # or another task holds the unique key
                event = TaskEnqueued(
                    task_id=task_id,
                    function=task.function,
                    queue=task.queue,
                    priority=task.priority,
                    eta=task.eta,
                    retry_of=task.retry_of,
                )
                self._hooks.emit(event)


def _warn_of_own_key(ids: list[TaskId[Any]]) -> None:
    """Log a warning if the running task holds the key that it enqueues under: nothing is stored."""
    running = CURRENT.get(None)
    if running is not None and running.id in ids:
        _logger.warning(
            "task %s of %s enqueued under the unique key that it holds itself: nothing was stored, "
            'and its own id came back; enqueue it with unique_until="start", and the key is free '
            "once it has started",
            running.id,
            running.function,
            extra=fields_of(running.worker_id, running),
        )


class OptionsMethod(Generic[B]):
    """The method `options` of all queues; ``B`` is what it returns."""

    def _bound(self, options: Options) -> B:
        raise NotImplementedError

    def options(
        self,
        *,
        eta: datetime | None = None,
        delay: float | timedelta | None = None,
        queue: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        unique_key: str | None = None,
        unique_until: Literal["end", "start"] = "end",
        expires_at: datetime | None = None,
        result_ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> B:
        """Return this queue with options for what is enqueued through it.

        An option that is given comes before the one of ``@task``, which comes before sitq's.

        Args:
            eta: the earliest moment to start, an aware datetime; ``None``: at once.
            delay: instead of ``eta``: seconds from each enqueue on, or a timedelta.
            queue: the name of the queue that workers take it from; ``"default"``.
            priority: -100 to 100; higher starts first; 0.
            timeout: seconds that one attempt may take; no limit.
            retry: when a failed attempt is followed by another; the worker's policy.
            unique_key: while another task holds this key, its id is returned instead. A task
                that was asked to end, or is past its ``expires_at``, holds none.
            unique_until: ``"end"``: a task holds its key until it is final. ``"start"``: until
                its first attempt starts; it does not get the key back for another attempt.
            expires_at: an aware datetime; from then on the task is not started any more.
            result_ttl: seconds that the result is kept; 7 days.
            headers: up to 64 short texts that travel with the task, 8 KiB in all.

        Raises:
            ValidationError: an option was refused; the text names it.
        """
        options = make_options(
            eta=eta,
            delay=delay,
            queue=queue,
            priority=priority,
            timeout=timeout,
            retry=retry,
            unique_key=unique_key,
            unique_until=unique_until,
            expires_at=expires_at,
            result_ttl=result_ttl,
            headers=headers,
        )
        return self._bound(options)


class _ProducingQueue:
    """A queue that stores calls under some options.

    Args:
        producer: makes and stores the tasks.
        options: the options of all of them.
    """

    def __init__(self, producer: Producer, options: Options = NO_OPTIONS) -> None:
        self._producer: Final = producer
        self._options: Final = options

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[TaskId[R]]:
        """Store a task for each ``call(func, ...)``, all or none.

        Args:
            calls: the calls, each made by `call`.

        Returns:
            The ids of the tasks in the order of the calls. In the place of a task whose
            ``unique_key`` is held is the id of the holder.

        Raises:
            ValidationError: a call was refused, its number (from 0) is in the text.
            SerializationError: an argument of a call cannot be stored; its number too.
            BackendError: the store could not store them.
            UsageError: the queue is closed.
        """
        return await self._producer.enqueue_many(calls, self._options)


class BoundQueue(_ProducingQueue):
    """A queue with options, from `TaskQueue.options`; every keyword goes to the function.

    Args:
        producer: makes and stores the tasks.
        options: the options of all of them.
    """

    def __repr__(self) -> str:
        return f"BoundQueue({self._producer.backend!r}, {self._options!r})"

    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    async def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Store a task under these options, and return its id once it is durable.

        Args:
            func: an async or plain function that a worker can find by its name.
            args: its positional arguments.
            kwargs: its keyword arguments, also those that are called like options.

        Returns:
            The id of the task, or of the one that holds the same ``unique_key``.

        Raises:
            ValidationError: the function or an argument was refused; nothing was stored.
            SerializationError: an argument cannot be stored; nothing was stored.
            BackendError: the store could not store it.
            UsageError: the queue is closed.
        """
        return await self._producer.enqueue(func, args, kwargs, self._options)


class EnqueueMethods(_ProducingQueue, OptionsMethod[BoundQueue]):
    """The methods that a queue and a queue bound to a transaction have in common."""

    def _bound(self, options: Options) -> BoundQueue:
        return BoundQueue(self._producer, options)

    @overload
    async def enqueue(
        self, func: AsyncFunction[R], /, *args: object, eta: datetime | None, **kwargs: object
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self, func: AnyFunction[R], /, *args: object, eta: datetime | None, **kwargs: object
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    async def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Store a task that calls ``func(*args, **kwargs)``, and return its id once it is durable.

        With ``eta=`` type checkers cannot check the other arguments; ``options(eta=...).enqueue``
        is the checked form.

        Args:
            func: an async or plain function that a worker can find by its name.
            args: its positional arguments.
            eta: the earliest moment to start, an aware datetime; ``None``: at once.
            kwargs: its keyword arguments.

        Raises:
            ValidationError: the function or an argument was refused; nothing was stored.
            SerializationError: an argument cannot be stored; nothing was stored.
            BackendError: the store could not store it.
            UsageError: the queue is closed.
        """
        options = take_eta(func, kwargs) if "eta" in kwargs else NO_OPTIONS
        return await self._producer.enqueue(func, args, kwargs, options)


class TransactionQueue(EnqueueMethods):
    """A queue within one transaction of the user's, from `TaskQueue.bind`.

    What is enqueued exists if and only if the transaction commits. Bind again for the next one:
    a connection that opens transactions by itself may also be bound once for all of them.

    Args:
        producer: makes the tasks, and stores them through the user's connection.
    """

    def __repr__(self) -> str:
        return f"TransactionQueue({self._producer.backend!r})"


def joined(backend: Backend, connection: AnyConnection) -> Transaction:
    """Return what writes to a store through a connection of the user's.

    Raises:
        UsageError: the store cannot, or not through a connection of this kind.
    """
    if not isinstance(backend, TransactionalBackend):
        raise UsageError(f"bind: {backend!r} cannot store within a transaction of yours")
    return backend.join(connection)
