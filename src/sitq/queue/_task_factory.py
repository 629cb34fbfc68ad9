"""Make tasks of calls: find the function, encode the arguments, and merge the options."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

import pydantic

from sitq._task_batch import TaskBatch, copy_with
from sitq._validation import describe
from sitq.errors import SerializationError, ValidationError
from sitq.ids import new_task_id, new_task_ids
from sitq.models import Task
from sitq.payload.registry import Call, default_registry
from sitq.payload.serialization import may_seal
from sitq.payload.signing import seal, unseal
from sitq.queue._options import NO_OPTIONS, OPTION_NAMES, Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sitq.payload.functions import TaskFunction
    from sitq.protocols import Clock, Serializer

__all__ = ["CHUNK", "TaskFactory", "make_repeat"]

# How many calls of a batch are encoded before other tasks of the loop run.
CHUNK: Final = 200
_TASK_OPTIONS: Final = OPTION_NAMES - {"delay"}


class TaskFactory:
    """Makes tasks of calls.

    Args:
        clock: the store's clock; a delay counts from it.
        serializer: encodes the arguments.
        seals: False: the tasks are not sealed yet, so that their headers can change.
    """

    def __init__(self, clock: Clock, serializer: Serializer, *, seals: bool = True) -> None:
        self._clock: Final = clock
        self._serializer: Final = serializer
        self.may_seal: Final = may_seal(serializer)
        self._seals: Final = seals and self.may_seal
        # The patterns for the options used last.
        self._recent: tuple[Options, dict[TaskFunction[Any], Task]] = (NO_OPTIONS, {})

    def make(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Options,
    ) -> Sequence[Task]:
        """Make the task of one call; a batch of one."""
        pattern, payload = self._encode(func, args, kwargs, options)
        batch = TaskBatch(pattern, [new_task_id()], [payload])
        return self.seal(batch) if self._seals else batch

    def make_many(self, calls: Iterable[Call[Any]], options: Options) -> Iterator[Sequence[Task]]:
        """Make the tasks of calls, `CHUNK` at a time."""
        if not hasattr(calls, "__iter__"):
            hint = "give an iterable of call(func, ...)"
            raise ValidationError(f"calls: {hint} (got {type(calls).__name__})")
        encoded: list[tuple[Task, bytes]] = []
        for index, item in enumerate(calls):
            try:
                if not isinstance(item, Call):
                    raise ValidationError(f"give call(func, ...) (got {type(item).__name__})")  # noqa: TRY301
                encoded.append(self._encode(item.func, item.args, item.kwargs, options))
            except (ValidationError, SerializationError) as error:
                kind = ValidationError if isinstance(error, ValueError) else SerializationError
                raise kind(f"calls[{index}]: {error}") from error
            if len(encoded) == CHUNK:
                yield self._finished(encoded)
                encoded = []
        if encoded:
            yield self._finished(encoded)

    def _encode(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Options,
    ) -> tuple[Task, bytes]:
        """Return a task that has all but id and payload of a call, and the payload."""
        given: object = func
        if isinstance(given, CoroutineType):
            given.close()  # or Python warns that it was never awaited
            hint = "give the function and its arguments apart, as in enqueue(add, 1, 2)"
            raise ValidationError(f"func: {hint} (got a coroutine)")
        function = default_registry.add(func)
        recent = self._recent  # read once: threads may share a factory
        if recent[0] is not options:
            recent = self._recent = (options, {})
        pattern = recent[1].get(function)
        if pattern is None:
            pattern = self._pattern(function, options)
            if options.delay is None:  # a delay counts from each enqueue, so it is not kept
                recent[1][function] = pattern
        try:
            payload = function.dump_arguments(self._serializer, args, kwargs)
        except ValidationError as error:
            _refuse_options(function, kwargs, error)
            raise
        if type(payload) is not bytes:
            payload = _checked(**vars(pattern) | {"payload": payload}).payload
        return pattern, payload

    def _pattern(self, function: TaskFunction[Any], options: Options) -> Task:
        """Make a task without arguments.

        Options override the function's defaults, which override sitq's.

        Raises:
            ValidationError: the delay ends after ``expires_at``, or after the year 9999.
        """
        defaults = vars(function.defaults)
        fields: dict[str, Any] = {}
        for name in _TASK_OPTIONS:
            value = getattr(options, name)
            if value is None:
                value = defaults.get(name)
            if value is not None:
                fields[name] = value
        if options.delay is not None:
            fields["eta"] = options.eta_after(options.delay, self._clock.now())
        return _checked(id=new_task_id(), function=function.name, payload=b"", **fields)

    def _finished(self, encoded: Sequence[tuple[Task, bytes]]) -> Sequence[Task]:
        batch = _batch_of(encoded)
        return self.seal(batch) if self._seals else batch

    def seal(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Return tasks as they are to be stored: sealed, if the serializer seals."""
        if not self.may_seal:
            return tasks
        return [seal(self._serializer, task) for task in tasks]


def _checked(**fields: Any) -> Task:
    try:
        return Task(**fields)
    except pydantic.ValidationError as error:
        raise ValidationError(f"{fields['function'][:200]}: {describe(error)}") from None


def _batch_of(encoded: Sequence[tuple[Task, bytes]]) -> Sequence[Task]:
    """Make a task of each pattern and payload, in order."""
    ids = new_task_ids(len(encoded))
    first = encoded[0][0]
    if all(pattern is first for pattern, _ in encoded):
        return TaskBatch(first, ids, [payload for _, payload in encoded])
    rows = zip(ids, encoded, strict=True)
    return [copy_with(pattern, task_id, payload) for task_id, (pattern, payload) in rows]


def _refuse_options(
    function: TaskFunction[Any], kwargs: Mapping[str, Any], error: ValidationError
) -> None:
    """Raise an error that says where options go, if some are among the function's arguments."""
    misplaced = [
        name for name in kwargs if name in OPTION_NAMES and not function.takes_keyword(name)
    ]
    if misplaced:
        given = ", ".join(f"{name}={_number(kwargs[name])}" for name in misplaced)
        message = f"{error}; options of the task go into queue.options({given}).enqueue(...)"
        raise ValidationError(message) from None


def _number(value: object) -> str:
    """Show a number, and nothing else: it might be an argument's value."""
    return repr(value) if type(value) in {int, float} else "..."


def make_repeat(serializer: Serializer, old: Task) -> Task:
    """Make the task that repeats a stored one, due at once and without an expiry, not sealed.

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
    return old.model_copy(update=changed)
