"""`TaskFunction`: check, dump and load the arguments and results of a function.

The function's signature is read at the first use: the names in its annotations may not exist yet
when a decorator runs.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from sitq._validation import Model, PositiveSeconds, Priority, QueueName, Seconds
from sitq.errors import SerializationError, ValidationError
from sitq.ids import R_co
from sitq.models import RetryPolicy
from sitq.payload._advice import advice_for
from sitq.payload._function_signatures import Signature
from sitq.resources import resources_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sitq.payload._function_signatures import Shape
    from sitq.payload._value_codec import ValueCodec
    from sitq.protocols import Serializer

__all__ = ["NOT_STORED", "TaskDefaults", "TaskFunction", "check_retry"]

T = TypeVar("T")

# The value of a success whose function has ``store_result=False``: no payload is empty.
NOT_STORED: Final = b""
_ENVELOPE: Final = 2
# Smaller payloads need no check of the total cost of their arguments.
_SMALL: Final = 4096
_TOO_DEAR: Final = (
    "the arguments together would take too long to read; "
    "store the data elsewhere and pass where it is"
)


class TaskDefaults(Model):
    """The options that a function's tasks have unless their enqueue says otherwise.

    Args:
        retry: the retry policy.
        timeout: seconds that one attempt may take.
        queue: the queue's name.
        priority: -100 to 100; higher runs first.
        result_ttl: seconds that the result is kept after the end.
        store_result: whether the value of a success is stored.
    """

    retry: RetryPolicy | None = None
    timeout: PositiveSeconds | None = None
    queue: QueueName | None = None
    priority: Priority | None = None
    result_ttl: Seconds | None = None
    store_result: bool = True


def check_retry(name: str, value: object) -> RetryPolicy:
    """Return a policy that is given as an option, as one of this very class.

    Args:
        name: the option's name, for the error.
        value: the value to check.

    Raises:
        ValidationError: it is not a retry policy.
    """
    if not isinstance(value, RetryPolicy):
        hint = "give a RetryPolicy, such as RetryPolicy(max_attempts=3)"
        raise ValidationError(f"{name}: {hint} (got {type(value).__name__})")
    return value.as_plain()


class TaskFunction(Generic[R_co]):
    """A function that tasks can run, under its stored name."""

    __slots__ = ("_signature", "defaults", "func", "is_async", "label", "name", "resources")

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
        self._signature: Signature | None = None
        # The factories of the parameters that the worker gives; known with the signature.
        self.resources: Mapping[str, Callable[[], Any]] = {}

    def __repr__(self) -> str:
        return f"TaskFunction({self.name!r})"

    def needs(self) -> dict[str, Callable[[], Any]]:
        """Return the factories of its resources, though its signature was not read yet."""
        try:
            return resources_of(inspect.signature(self.func))
        except (TypeError, ValueError):
            return {}

    def takes_keyword(self, name: str) -> bool:
        """Return whether an argument may be given by this name."""
        signature = self._signature or self._inspect()
        return name in signature.named or signature.rest_named is not None

    def dump_arguments(
        self, serializer: Serializer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bytes:
        """Encode the arguments of a call: by position or by name, as each was given.

        The signature decides whether the call fits. It is not stored: no defaults, no names of
        positional arguments, no positions of keyword arguments. The worker binds the arguments to
        the signature that the function has there.

        Raises:
            ValidationError: they do not fit the signature, or one is not what its annotation says.
            SerializationError: one cannot be stored, or they are too large together.
        """
        signature = self._signature or self._inspect()
        shape: Shape = (len(args), *kwargs) if kwargs else len(args)
        try:
            codecs, named = signature.shapes.get(shape) or signature.codecs(shape, args, kwargs)
        except TypeError as error:
            raise ValidationError(f"{self.label}: {error}; its signature says what fits") from None
        plain = [
            value if type(value) in codecs[place].leaves else _dump(codecs[place], value)
            for place, value in enumerate(args)
        ]
        keywords: dict[str, object] = {}
        for name, value in kwargs.items():
            codec = named[name]
            keywords[name] = value if type(value) in codec.leaves else _dump(codec, value)
        try:
            data = serializer.dumps([plain, keywords])
        except SerializationError as error:
            pairs = _paired(codecs, plain, named, keywords)
            for (codec, each), value in zip(pairs, (*args, *kwargs.values()), strict=True):
                _encode(serializer, codec, each, value)  # the error names the argument
            raise SerializationError(f"{self.label}: the arguments together: {error}") from None
        if len(data) > _SMALL and len(args) + len(kwargs) > 1:  # one has its own limits
            self._check_together(_paired(codecs, plain, named, keywords))
        return data

    def load_arguments(
        self, serializer: Serializer, payload: bytes
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode arguments and rebuild them from the annotations.

        Raises:
            SerializationError: the payload is malformed.
            ValidationError: what it holds does not fit the function (any more).
        """
        signature = self._signature or self._inspect()
        envelope = serializer.loads(payload)
        if type(envelope) is not list or len(envelope) != _ENVELOPE:
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        args, kwargs = envelope
        if type(args) is not list or type(kwargs) is not dict:
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        shape: Shape = (len(args), *kwargs) if kwargs else len(args)
        try:
            codecs, named = signature.shapes.get(shape) or signature.codecs(shape, args, kwargs)
        except TypeError as error:
            raise ValidationError(
                f"{self.label}: the stored arguments do not fit its signature: {error}"
            ) from None
        if len(payload) > _SMALL and len(args) + len(kwargs) > 1:
            self._check_together(_paired(codecs, args, named, kwargs))
        values = [
            plain if type(plain) in codec.leaves else _named(codec, codec.load, plain)
            for codec, plain in zip(codecs, args, strict=False)
        ]
        for name, plain in kwargs.items():
            codec = named[name]
            kwargs[name] = (
                plain if type(plain) in codec.leaves else _named(codec, codec.load, plain)
            )
        return tuple(values), kwargs

    def dump_result(self, serializer: Serializer, value: Any) -> bytes:
        """Encode the function's result; the value is empty if its results are not stored."""
        if not self.defaults.store_result:
            return NOT_STORED
        codec = (self._signature or self._inspect()).result
        plain = value if type(value) in codec.leaves else _dump(codec, value)
        return _encode(serializer, codec, plain, value)

    def load_result(self, serializer: Serializer, data: bytes) -> R_co:
        """Decode the function's result; ``None`` if it was not stored."""
        if data == NOT_STORED:
            return cast("R_co", None)
        codec = (self._signature or self._inspect()).result
        plain = serializer.loads(data)
        return cast(
            "R_co", plain if type(plain) in codec.leaves else _named(codec, codec.load, plain)
        )

    def _check_together(self, arguments: Iterator[tuple[ValueCodec, Any]]) -> None:
        """Check that all arguments together can be rebuilt in the time that one may take."""
        shares = [_named(codec, codec.share, plain) for codec, plain in arguments]
        if math.fsum(shares) > 1:  # sum() rounds at each step before Python 3.12
            raise SerializationError(f"{self.label}: {_TOO_DEAR}")

    def _inspect(self) -> Signature:
        try:
            self._signature = signature = Signature(self.func, self.label)
            self.resources = signature.resources
        except ValidationError:
            raise
        except (TypeError, ValueError, NameError) as error:
            raise ValidationError(
                f"{self.label}: Python finds no signature of it "
                f"({type(error).__name__}); wrap it in a function of your own"
            ) from None
        return signature


def _paired(
    codecs: Sequence[ValueCodec],
    args: Sequence[Any],
    named: Mapping[str, ValueCodec],
    kwargs: Mapping[str, Any],
) -> Iterator[tuple[ValueCodec, Any]]:
    """Pair the arguments of a call with their codecs."""
    yield from zip(codecs, args, strict=False)
    for name, value in kwargs.items():
        yield named[name], value


def _dump(codec: ValueCodec, value: object) -> object:
    try:
        return codec.dump(value)
    except (ValidationError, SerializationError) as error:
        raise _refused(codec, value, error) from None
    except Exception as error:
        text = f"its type's own code raised {type(error).__name__}"
        raise _refused(codec, value, SerializationError(text)) from error


def _encode(serializer: Serializer, codec: ValueCodec, plain: object, value: object) -> bytes:
    try:
        return serializer.dumps(plain)
    except SerializationError as error:
        raise _refused(codec, value, error) from None


def _named(codec: ValueCodec, method: Callable[[Any], T], plain: object) -> T:
    """Call a method of a codec; an error names the parameter."""
    try:
        return method(plain)
    except (ValidationError, SerializationError) as error:
        raise type(error)(f"{codec.label}: {error}") from None


def _refused(
    codec: ValueCodec, value: object, error: ValidationError | SerializationError
) -> ValidationError | SerializationError:
    """Return the error to raise about a value: which one, what is wrong, and what to do."""
    return type(error)(f"{codec.label}: {error}{advice_for(value)}")
