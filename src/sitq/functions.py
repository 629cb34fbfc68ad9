"""A function as a task: its arguments bound and checked, written and read back; its results too.

Everything that depends on the function alone is worked out once, at its first use: a decorator
runs before the names in the function's annotations exist.
"""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpecArgs, ParamSpecKwargs, cast

from sitq._fields import Model, PositiveSeconds, Priority, QueueName, Seconds
from sitq._values import ValueCodec, name_of_annotation
from sitq.errors import SerializationError, ValidationError
from sitq.ids import R_co
from sitq.models import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sitq.protocols import Serializer

__all__ = ["TaskDefaults", "TaskFunction"]

_ENVELOPE: Final = 2
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_AWAITABLES: Final = frozenset({"Awaitable", "Coroutine"})


class TaskDefaults(Model):
    """The options that a function's tasks have unless their enqueue says otherwise.

    Args:
        retry: the retry policy.
        timeout: seconds that one attempt may take.
        queue: the queue's name.
        priority: -100 to 100; higher runs first.
        result_ttl: seconds that the result is kept after the end.
    """

    retry: RetryPolicy | None = None
    timeout: PositiveSeconds | None = None
    queue: QueueName | None = None
    priority: Priority | None = None
    result_ttl: Seconds | None = None


class _Slot:
    """One parameter, or the return value, and how its values travel."""

    __slots__ = ("_codec", "_problem", "label", "leaves")

    def __init__(self, label: str, annotation: object, problem: str | None) -> None:
        self.label: Final = label
        self._problem: Final = problem
        self._codec: Final = ValueCodec(annotation)
        self.leaves: Final = frozenset[type]() if problem else self._codec.leaves

    def lower(self, value: object) -> object:
        return value if type(value) in self.leaves else self._ready().lower(value)

    def restore(self, plain: object) -> Any:
        return plain if type(plain) in self.leaves else self._ready().restore(plain)

    def _ready(self) -> ValueCodec:
        if self._problem:
            raise ValidationError(self._problem)
        return self._codec


class _Shape:
    """What a function's signature says."""

    __slots__ = ("_bind", "_names", "named", "positional", "rest", "rest_named", "result", "simple")

    def __init__(self, func: Callable[..., Any], *, is_async: bool) -> None:
        signature = inspect.signature(func)
        scope = _Scope(func)
        self._bind: Final = signature.bind
        # Of the positional parameters; ``None`` for one that takes no keyword.
        self._names: Final[list[str | None]] = []
        self.positional: Final[list[_Slot]] = []
        self.named: Final[dict[str, _Slot]] = {}
        self.rest: _Slot | None = None
        self.rest_named: _Slot | None = None
        required, simple = 0, True
        for name, parameter in signature.parameters.items():
            slot = scope.slot(f"parameter {name!r}", parameter.annotation)
            if parameter.kind in _POSITIONAL:
                self.positional.append(slot)
                is_named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                self._names.append(name if is_named else None)
                required += parameter.default is parameter.empty
            elif parameter.kind is parameter.VAR_POSITIONAL:
                self.rest = slot
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.rest_named = slot
            else:
                simple = simple and parameter.default is not parameter.empty
            if parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
                self.named[name] = slot
        # With so many positional arguments and no others, there is nothing to bind.
        self.simple: Final = range(required, len(self.positional) + 1) if simple else range(0)
        self.result: Final = scope.slot("the return value", signature.return_annotation, is_async)

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Sort arguments into positional and keyword ones; a TypeError says what does not fit."""
        if len(args) + len(kwargs) in self.simple:
            if not kwargs:
                return args, kwargs
            # Keywords for the parameters that come next: a lot less work than any others.
            following = self._names[len(args) : len(args) + len(kwargs)]
            found = [kwargs[name] for name in following if name and name in kwargs]
            if len(found) == len(kwargs):
                return [*args, *found], {}
        bound = self._bind(*args, **kwargs)
        return bound.args, bound.kwargs

    def slots(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[_Slot, Any]]:
        """Pair the bound arguments with their slots."""
        yield from zip(self.positional, args, strict=False)
        for value in args[len(self.positional) :]:
            yield cast("_Slot", self.rest), value
        for name, value in kwargs.items():
            yield self.named.get(name) or cast("_Slot", self.rest_named), value


class _Scope:
    """Resolves the annotations of one function, each by itself."""

    def __init__(self, func: Callable[..., Any]) -> None:
        inner = inspect.unwrap(func, stop=lambda each: hasattr(each, "__signature__"))
        self._globals: Final[dict[str, Any]] = getattr(inner, "__globals__", {})
        self._type_params: Final = {
            param.__name__: param for param in getattr(inner, "__type_params__", ())
        }

    def slot(self, label: str, annotation: Any, awaited: bool = False) -> _Slot:  # noqa: FBT001, FBT002
        problem = None
        try:
            resolved = Any if annotation is inspect.Parameter.empty else self._resolve(annotation)
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            resolved, problem = Any, _unresolved(annotation, error)
        origin, args = typing.get_origin(resolved), typing.get_args(resolved)
        if awaited and getattr(origin, "__name__", None) in _AWAITABLES:
            resolved = args[-1]
        elif isinstance(resolved, ParamSpecArgs | ParamSpecKwargs) or origin is typing.Unpack:
            resolved = Any
        return _Slot(label, resolved, problem)

    def _resolve(self, annotation: Any) -> Any:
        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        return typing.get_type_hints(holder, self._globals, self._type_params, include_extras=True)[
            "it"
        ]


def _unresolved(annotation: object, error: Exception) -> str:
    return (
        f"its annotation {name_of_annotation(annotation)} cannot be resolved "
        f"({type(error).__name__}: {error}); define or import that name at run time, "
        "not only under TYPE_CHECKING"
    )


class TaskFunction(Generic[R_co]):
    """A function that tasks can run, under its stored name.

    Args:
        name: the stored name.
        func: the function.
        defaults: the options of its tasks unless an enqueue says otherwise.
    """

    __slots__ = ("_shape", "defaults", "func", "is_async", "label", "name")

    def __init__(
        self,
        name: str,
        func: Callable[..., R_co] | Callable[..., Awaitable[R_co]],
        defaults: TaskDefaults | None = None,
    ) -> None:
        self.name: Final = name
        self.func: Final[Callable[..., Any]] = func
        self.defaults: Final = defaults or TaskDefaults()
        self.is_async: Final = inspect.iscoroutinefunction(func)
        self.label: Final = f"{getattr(func, '__qualname__', name)}()"
        self._shape: _Shape | None = None

    def __repr__(self) -> str:
        return f"TaskFunction({self.name!r})"

    def dump_arguments(
        self, serializer: Serializer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bytes:
        """Encode the arguments of a call, bound to the signature, without the defaults.

        Raises:
            ValidationError: they do not fit the signature, or one is not what its annotation says.
            SerializationError: one cannot travel, or they are too large together.
        """
        shape = self._shape or self._inspect()
        keywords: dict[str, object] = {}
        if not kwargs and len(args) in shape.simple:
            slots = shape.positional
            plain = [
                value if type(value) in slots[place].leaves else self._lower(slots[place], value)
                for place, value in enumerate(args)
            ]
        else:
            plain, keywords = self._lower_all(shape, args, kwargs)
        try:
            return serializer.dumps([plain, keywords])
        except SerializationError as error:
            self._blame(serializer, shape.slots(plain, keywords))
            raise SerializationError(f"{self.label}: the arguments together: {error}") from None

    def load_arguments(
        self, serializer: Serializer, payload: bytes
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode arguments and rebuild them from the annotations.

        Raises:
            SerializationError: the payload is malformed.
            ValidationError: what it holds does not fit the function (any more).
        """
        shape = self._shape or self._inspect()
        envelope = serializer.loads(payload)
        if type(envelope) is not list or len(envelope) != _ENVELOPE:
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        args, kwargs = envelope
        if type(args) is not list or type(kwargs) is not dict:
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        if not kwargs and len(args) in shape.simple:
            slots = zip(shape.positional, args, strict=False)
            values = [
                plain if type(plain) in slot.leaves else self._restore(slot, plain)
                for slot, plain in slots
            ]
            return tuple(values), {}
        if not {str}.issuperset(map(type, kwargs)):
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        try:
            bound, named = shape.bind(args, kwargs)
        except TypeError as error:
            raise ValidationError(
                f"{self.label}: the stored arguments do not fit its signature: {error}"
            ) from None
        restored = [self._restore(slot, plain) for slot, plain in shape.slots(bound, named)]
        count = len(bound)
        return tuple(restored[:count]), dict(zip(named, restored[count:], strict=True))

    def dump_result(self, serializer: Serializer, value: Any) -> bytes:
        """Encode what the function returned.

        Raises:
            ValidationError: it is not what the return annotation says.
            SerializationError: it cannot travel, or is too large.
        """
        slot = (self._shape or self._inspect()).result
        plain = self._lower(slot, value)
        try:
            return serializer.dumps(plain)
        except SerializationError as error:
            raise SerializationError(f"{self.label}: {slot.label}: {error}") from None

    def load_result(self, serializer: Serializer, data: bytes) -> R_co:
        """Decode what the function returned.

        Raises:
            SerializationError: the data is malformed.
            ValidationError: what it holds does not fit the return annotation (any more).
        """
        slot = (self._shape or self._inspect()).result
        return cast("R_co", self._restore(slot, serializer.loads(data)))

    def _inspect(self) -> _Shape:
        try:
            self._shape = shape = _Shape(self.func, is_async=_is_annotated_async(self.func))
        except (TypeError, ValueError, NameError) as error:
            raise ValidationError(
                f"{self.label}: it has no signature that Python can tell "
                f"({type(error).__name__}); wrap it in a function of your own"
            ) from None
        return shape

    def _lower_all(
        self, shape: _Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[object], dict[str, object]]:
        """Bind arguments of any kind, and take each apart."""
        try:
            bound, named = shape.bind(args, kwargs)
        except TypeError as error:
            raise ValidationError(f"{self.label}: {error}; its signature says what fits") from None
        plain = [
            self._lower(slot, value) for slot, value in zip(shape.positional, bound, strict=False)
        ]
        if len(bound) > len(plain) and shape.rest is not None:
            rest = shape.rest
            plain += [self._lower(rest, value) for value in bound[len(plain) :]]
        keywords = {}
        for name, value in named.items():
            slot = shape.named.get(name) or cast("_Slot", shape.rest_named)
            keywords[name] = self._lower(slot, value)
        return plain, keywords

    def _lower(self, slot: _Slot, value: object) -> object:
        try:
            return slot.lower(value)
        except (ValidationError, SerializationError) as error:
            raise type(error)(f"{self.label}: {slot.label}: {error}") from None

    def _restore(self, slot: _Slot, plain: object) -> Any:
        if type(plain) in slot.leaves:
            return plain
        try:
            return slot.restore(plain)
        except (ValidationError, SerializationError) as error:
            raise type(error)(f"{self.label}: {slot.label}: {error}") from None

    def _blame(self, serializer: Serializer, slots: Iterator[tuple[_Slot, Any]]) -> None:
        """Raise for the one argument that cannot be encoded, if it is one."""
        for slot, plain in slots:
            try:
                serializer.dumps(plain)
            except SerializationError as error:
                raise SerializationError(f"{self.label}: {slot.label}: {error}") from None


def _is_annotated_async(func: object) -> bool:
    """Tell if the annotation of what a function returns is that of a coroutine function.

    A wrapper has it from what it wraps, whatever its own calls give.
    """
    seen: set[int] = set()
    while id(func) not in seen:
        if inspect.iscoroutinefunction(func):
            return True
        seen.add(id(func))
        func = getattr(func, "__wrapped__", func)
    return False
