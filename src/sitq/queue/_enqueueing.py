"""Enqueueing: make tasks of calls, and store them in a transaction of sitq's or the user's own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, overload

from anyio.lowlevel import checkpoint

from sitq._logging import Log
from sitq._task_batch import concat
from sitq.context import CURRENT
from sitq.errors import SerializationError, UsageError, ValidationError
from sitq.ids import new_task_id
from sitq.payload._signatures import spelled_out
from sitq.payload.registry import Call, default_registry
from sitq.payload.serialization import may_seal
from sitq.payload.signing import seal, unseal
from sitq.queue._options import NO_OPTIONS, Options, TaskMaker, make_options, make_tasks
from sitq.transactions import TransactionalBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from sitq.ids import TaskId
    from sitq.models import RetryPolicy, Task
    from sitq.payload.functions import TaskFunction
    from sitq.protocols import Backend, Clock, Serializer
    from sitq.transactions import AnyConnection, Transaction

__all__ = [
    "BoundQueue",
    "EnqueueMethods",
    "Producer",
    "TaskFactory",
    "TransactionQueue",
    "checked_ids",
    "joined",
    "make_repeat",
    "refuse_own_eta",
    "take_eta",
]

P = ParamSpec("P")
R = TypeVar("R")

_logger: Final = Log(__name__)
# How many calls of a batch are encoded before other tasks of the loop run.
_TURN: Final = 200


class TaskFactory:
    """Makes tasks of calls.

    Args:
        name: the store, for a ``repr``.
        clock: the store's clock.
        serializer: encodes the arguments.
    """

    def __init__(self, name: object, clock: Clock, serializer: Serializer) -> None:
        self.name: Final = name
        self._clock: Final = clock
        self._serializer: Final = serializer
        self._seals: Final = may_seal(serializer)
        # The makers for the options used last.
        self._recent: tuple[Options, dict[TaskFunction[Any], TaskMaker]] = (NO_OPTIONS, {})

    def make(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
    ) -> Sequence[Task]:
        """Make the task of one call; a batch of one."""
        maker = self._maker(func, options)
        return self._sealed(maker.make(maker.encode(self._serializer, args, kwargs)))

    def make_many(self, calls: Iterable[Call[Any]], options: Options) -> Iterator[Sequence[Task]]:
        """Make the tasks of calls, some at a time."""
        if not hasattr(calls, "__iter__"):
            hint = "give an iterable of call(func, ...)"
            raise ValidationError(f"calls: {hint} (got {type(calls).__name__})")
        encoded: list[tuple[TaskMaker, bytes]] = []
        for index, item in enumerate(calls):
            try:
                encoded.append(self._encode(item, options))
            except ValidationError as error:
                raise ValidationError(f"calls[{index}]: {error}") from error
            except SerializationError as error:
                raise SerializationError(f"calls[{index}]: {error}") from error
            if len(encoded) == _TURN:
                yield self._sealed(make_tasks(encoded))
                encoded = []
        if encoded:
            yield self._sealed(make_tasks(encoded))

    def _encode(self, item: object, options: Options) -> tuple[TaskMaker, bytes]:
        if not isinstance(item, Call):
            raise ValidationError(f"give call(func, ...) (got {type(item).__name__})")
        maker = self._maker(item.func, options)
        return maker, maker.encode(self._serializer, item.args, item.kwargs)

    def _maker(self, func: Callable[..., Any], options: Options) -> TaskMaker:
        """Return the maker for a call; one from before if there is one."""
        given: object = func
        if inspect.iscoroutine(given):
            given.close()  # or Python warns that it was never awaited
            hint = "give the function and its arguments apart, as in enqueue(add, 1, 2)"
            raise ValidationError(f"func: {hint} (got a coroutine)")
        function = default_registry.add(func)
        recent = self._recent  # read once: threads may share a producer
        if recent[0] is not options:
            recent = self._recent = (options, {})
        maker = recent[1].get(function)
        if maker is None:
            maker = TaskMaker(function, options, self._clock.now)
            if options.delay is None:  # a delay counts from each enqueue, so its maker is not kept
                recent[1][function] = maker
        return maker

    def _sealed(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return [seal(self._serializer, task) for task in tasks] if self._seals else tasks


def checked_ids(ids: list[TaskId[Any]], options: Options) -> list[TaskId[Any]]:
    """Return the ids that a store gave for tasks; log a warning if the running task is among them.

    Such a task holds the unique key itself, and nothing was stored.
    """
    running = CURRENT.get(None) if options.unique_key is not None else None
    if running is not None and running.id in ids:
        _logger.warning(
            "task %s of %s enqueued under the unique key that it holds itself: nothing was stored, "
            'and its own id came back; enqueue it with unique_until="start", and the key is free '
            "once it has started",
            running.id,
            running.function,
        )
    return ids


class Producer:
    """Makes tasks of calls and stores them; nothing is stored unless all of them can be.

    Args:
        factory: makes the tasks.
        store: stores tasks and returns their ids.
        pause: lets other tasks of the loop run in the middle of a long batch.
    """

    def __init__(
        self,
        factory: TaskFactory,
        store: Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]],
        pause: Callable[[], Awaitable[None]] = checkpoint,
    ) -> None:
        self.factory: Final = factory
        self._store: Final = store
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
        return checked_ids(await self._store(tasks), options)[0]

    async def enqueue_many(self, calls: Iterable[Call[Any]], options: Options) -> list[TaskId[Any]]:
        """Store calls, all or none."""
        batches: list[Sequence[Task]] = []
        for batch in self.factory.make_many(calls, options):
            batches.append(batch)
            if len(batch) == _TURN:
                await self._pause()
        return checked_ids(await self._store(concat(batches)), options)


class BoundQueue:
    """A queue with options, from `TaskQueue.options`; every keyword goes to the function."""

    def __init__(self, producer: Producer, options: Options) -> None:
        self._producer: Final = producer
        self._options: Final = options

    def __repr__(self) -> str:
        return f"BoundQueue({self._producer.factory.name!r}, {self._options!r})"

    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self, func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]: ...
    async def enqueue(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Store a task under these options; see `TaskQueue.enqueue`.

        Raises:
            ValidationError: the function or an argument was refused; nothing was stored.
            SerializationError: an argument cannot be stored; nothing was stored.
            BackendError: the store could not store it.
            UsageError: the queue is closed.
        """
        return await self._producer.enqueue(func, args, kwargs, self._options)

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[TaskId[R]]:
        """Store calls under these options, all or none; see `TaskQueue.enqueue_many`.

        Raises:
            ValidationError: a call was refused, its number (from 0) is in the text.
            SerializationError: an argument of a call cannot be stored; its number too.
            BackendError: the store could not store them.
            UsageError: the queue is closed.
        """
        return await self._producer.enqueue_many(calls, self._options)


class EnqueueMethods:
    """The methods that a queue and a queue bound to a transaction have in common.

    Args:
        producer: makes and stores the tasks.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer: Final = producer

    @overload
    async def enqueue(
        self,
        func: Callable[..., Awaitable[R]],
        /,
        *args: object,
        eta: datetime | None,
        **kwargs: object,
    ) -> TaskId[R]: ...
    @overload
    async def enqueue(
        self,
        func: Callable[..., Awaitable[R] | R],
        /,
        *args: object,
        eta: datetime | None,
        **kwargs: object,
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
        return await self._producer.enqueue(func, args, kwargs, take_eta(func, kwargs))

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[TaskId[R]]:
        """Store a task for each ``call(func, ...)``, all or none; return their ids in order.

        Raises:
            ValidationError: a call was refused, its number (from 0) is in the text.
            SerializationError: an argument of a call cannot be stored; its number too.
            BackendError: the store could not store them.
            UsageError: the queue is closed.
        """
        return await self._producer.enqueue_many(calls, NO_OPTIONS)

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
    ) -> BoundQueue:
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
        given = make_options(
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
        return BoundQueue(self._producer, given)


def make_repeat(serializer: Serializer, old: Task) -> Task:
    """Make the task that repeats a stored one, due at once and without an expiry.

    Raises:
        SerializationError: the signature of the old one is missing or broken, so the new one must
            not get a valid one.
    """
    changed = {
        "id": new_task_id(),
        "payload": unseal(serializer, old),
        "eta": None,
        "expires_at": None,
        "retry_of": old.id,
    }
    return seal(serializer, old.model_copy(update=changed))


def take_eta(func: Callable[..., Any], kwargs: dict[str, Any]) -> Options:
    """Take the option ``eta=`` out of the keyword arguments of a call.

    Raises:
        ValidationError: the function has such a parameter itself, or the value is not a datetime.
    """
    if "eta" not in kwargs:
        return NO_OPTIONS
    refuse_own_eta(func)
    return make_options(eta=kwargs.pop("eta"))


def refuse_own_eta(func: Callable[..., Any]) -> None:
    """Refuse ``eta=`` for a function that has a parameter of this name: the call is ambiguous.

    Raises:
        ValidationError: the function has one.
    """
    try:
        parameter = spelled_out(func).parameters.get("eta")
    except (TypeError, ValueError):  # it is not a function, which another check refuses
        return
    if parameter is not None and parameter.kind in {
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    }:
        name = getattr(func, "__qualname__", type(func).__name__)
        message = (
            f"eta: {name} has a parameter of that name too; use "
            "queue.options(eta=...).enqueue(...), where every keyword goes to the function"
        )
        raise ValidationError(message)


class TransactionQueue(EnqueueMethods):
    """A queue within one transaction of the user's, from `TaskQueue.bind`.

    What is enqueued exists if and only if the transaction commits. Bind again for the next one:
    a connection that opens transactions by itself may also be bound once for all of them.

    Args:
        backend: the store, for a ``repr``.
        factory: makes the tasks.
        transaction: what writes through the user's connection.
        use: makes sure that the store is open.
    """

    def __init__(
        self,
        backend: Backend,
        factory: TaskFactory,
        transaction: Transaction,
        use: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__(Producer(factory, self._store))
        self._backend: Final = backend
        self._transaction: Final = transaction
        self._use: Final = use

    def __repr__(self) -> str:
        return f"TransactionQueue({self._backend!r})"

    async def _store(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        await self._use()
        return await self._transaction.enqueue(tasks) if tasks else []


def joined(backend: Backend, connection: AnyConnection) -> Transaction:
    """Return what writes to a store through a connection of the user's.

    Raises:
        UsageError: the store cannot, or not through a connection of this kind.
    """
    if not isinstance(backend, TransactionalBackend):
        raise UsageError(f"bind: {backend!r} cannot store within a transaction of yours")
    return backend.join(connection)
