"""`TaskFunction`: check, dump and load the arguments and results of a function.

The function's signature is read at the first use: the names in its annotations may not exist yet
when a decorator runs.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import TYPE_CHECKING, Any, Final, Generic, cast

from sitq._validation import Model, PositiveSeconds, Priority, QueueName, Seconds
from sitq.errors import SerializationError, ValidationError
from sitq.ids import R_co
from sitq.models import RetryPolicy
from sitq.payload._advice import advice_for
from sitq.payload._signatures import ParameterCodec, Signature

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sitq.protocols import Serializer

__all__ = ["NOT_STORED", "TaskDefaults", "TaskFunction"]

# The value of a success whose function has ``store_result=False``: no payload is empty.
NOT_STORED: Final = b""
_ENVELOPE: Final = 2
# These are checked separately.
_MAX_ARGUMENTS: Final = 10_000
# Smaller payloads need no check of the total cost of their arguments.
_SMALL: Final = 4096
_TOO_DEAR: Final = (
    "the arguments together would take too long to read; "
    "store the data elsewhere and pass where it is"
)
_TOO_MANY_ARGUMENTS: Final = f"more than {_MAX_ARGUMENTS:,} arguments; pass one list of them"


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


class TaskFunction(Generic[R_co]):
    """A function that tasks can run, under its stored name.

    Args:
        name: the stored name.
        func: the function.
        defaults: the options of its tasks unless an enqueue says otherwise.
    """

    __slots__ = ("_signature", "defaults", "func", "is_async", "label", "name")

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

    def __repr__(self) -> str:
        return f"TaskFunction({self.name!r})"

    def takes_keyword(self, name: str) -> bool:
        """Return whether an argument may be given by this name.

        Raises:
            ValidationError: Python knows no signature of the function.
        """
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
        keywords: dict[str, object] = {}
        fits = signature.fits(args, kwargs) if kwargs else len(args) in signature.positional_counts
        if fits:
            slots, named = signature.positional, signature.named
            plain = [
                value if type(value) in slots[place].leaves else self._dump(slots[place], value)
                for place, value in enumerate(args)
            ]
            for name, value in kwargs.items():
                slot = named[name]
                keywords[name] = value if type(value) in slot.leaves else self._dump(slot, value)
        else:
            if len(args) + len(kwargs) > _MAX_ARGUMENTS:
                raise SerializationError(f"{self.label}: {_TOO_MANY_ARGUMENTS}")
            plain, keywords = self._dump_all(signature, args, kwargs)
        try:
            data = serializer.dumps([plain, keywords])
        except SerializationError as error:
            given = (*args, *kwargs.values())
            self._blame(serializer, zip(signature.slots(plain, keywords), given, strict=True))
            raise SerializationError(f"{self.label}: the arguments together: {error}") from None
        if len(data) > _SMALL:
            self._check_together(signature, plain, keywords)
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
        if len(args) + len(kwargs) > _MAX_ARGUMENTS:
            raise SerializationError(f"{self.label}: {_TOO_MANY_ARGUMENTS}")
        fits = signature.fits(args, kwargs) if kwargs else len(args) in signature.positional_counts
        if len(payload) > _SMALL and (fits or {str}.issuperset(map(type, kwargs))):
            self._check_together(signature, args, kwargs)
        if fits:
            slots, named = zip(signature.positional, args, strict=False), signature.named
            values = [
                plain if type(plain) in slot.leaves else self._load(slot, plain)
                for slot, plain in slots
            ]
            for name, plain in kwargs.items():
                slot = named[name]
                kwargs[name] = plain if type(plain) in slot.leaves else self._load(slot, plain)
            return tuple(values), kwargs
        if not {str}.issuperset(map(type, kwargs)):
            raise SerializationError(f"{self.label}: the payload holds no arguments")
        try:
            signature.check(args, kwargs)
        except TypeError as error:
            raise ValidationError(
                f"{self.label}: the stored arguments do not fit its signature: {error}"
            ) from None
        restored = [self._load(slot, plain) for slot, plain in signature.slots(args, kwargs)]
        count = len(args)
        return tuple(restored[:count]), dict(zip(kwargs, restored[count:], strict=True))

    def dump_result(self, serializer: Serializer, value: Any) -> bytes:
        """Encode the function's result; an empty value if its results are not stored.

        Raises:
            ValidationError: it is not what the return annotation says.
            SerializationError: it cannot be stored, or is too large.
        """
        if not self.defaults.store_result:
            return NOT_STORED
        slot = (self._signature or self._inspect()).result
        plain = self._dump(slot, value)
        try:
            return serializer.dumps(plain)
        except SerializationError as error:
            raise self._refused(slot, value, error) from None

    def load_result(self, serializer: Serializer, data: bytes) -> R_co:
        """Decode the function's result; ``None`` if it was not stored.

        Raises:
            SerializationError: the data is malformed.
            ValidationError: what it holds does not fit the return annotation (any more).
        """
        if data == NOT_STORED:
            return cast("R_co", None)
        slot = (self._signature or self._inspect()).result
        return cast("R_co", self._load(slot, serializer.loads(data)))

    def _check_together(
        self, signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Check that all arguments together can be rebuilt in the time that one may take."""
        if len(args) + len(kwargs) < 2:  # noqa: PLR2004 - one has its own limits
            return
        with contextlib.suppress(TypeError):  # arguments that do not fit are refused elsewhere
            signature.check(args, kwargs)
            shares = (slot.share(plain) for slot, plain in signature.slots(args, kwargs))
            if math.fsum(shares) > 1:  # sum() rounds at each step before Python 3.12
                raise SerializationError(f"{self.label}: {_TOO_DEAR}")

    def _inspect(self) -> Signature:
        try:
            self._signature = signature = Signature(self.func)
        except (TypeError, ValueError, NameError) as error:
            raise ValidationError(
                f"{self.label}: it has no signature that Python can tell "
                f"({type(error).__name__}); wrap it in a function of your own"
            ) from None
        return signature

    def _dump_all(
        self, signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[object], dict[str, object]]:
        """Check and dump the arguments, positional and keyword ones each in their place."""
        try:
            signature.check(args, kwargs)
        except TypeError as error:
            raise ValidationError(f"{self.label}: {error}; its signature says what fits") from None
        slots = signature.slots(args, kwargs)
        lowered = [self._dump(slot, value) for slot, value in slots]
        count = len(args)
        return lowered[:count], dict(zip(kwargs, lowered[count:], strict=True))

    def _dump(self, slot: ParameterCodec, value: object) -> object:
        try:
            return slot.dump(value)
        except (ValidationError, SerializationError) as error:
            raise self._refused(slot, value, error) from None
        except Exception as error:
            text = f"its type's own code raised {type(error).__name__}"
            raise self._refused(slot, value, SerializationError(text)) from error

    def _load(self, slot: ParameterCodec, plain: object) -> Any:
        if type(plain) in slot.leaves:
            return plain
        try:
            return slot.load(plain)
        except (ValidationError, SerializationError) as error:
            raise type(error)(f"{self.label}: {slot.label}: {error}") from None

    def _blame(
        self, serializer: Serializer, arguments: Iterable[tuple[tuple[ParameterCodec, Any], Any]]
    ) -> None:
        """Raise an error that names the argument that cannot be encoded, if there is one."""
        for (slot, plain), value in arguments:
            try:
                serializer.dumps(plain)
            except SerializationError as error:
                raise self._refused(slot, value, error) from None

    def _refused(
        self, slot: ParameterCodec, value: object, error: ValidationError | SerializationError
    ) -> ValidationError | SerializationError:
        """Return the error to raise about a value: which one, what is wrong, and what to do."""
        return type(error)(f"{self.label}: {slot.label}: {error}{advice_for(value)}")
