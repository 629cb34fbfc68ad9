"""The rules for the values of options and fields, and the texts of the errors.

A rule is a type with a `_Hint`. Models and the functions of this module refuse with the same text.
"""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar, cast, get_type_hints

import pydantic
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    TypeAdapter,
)
from pydantic_core import PydanticCustomError, core_schema

from sitq._builtin_types import plain
from sitq._module_names import class_name
from sitq.errors import ValidationError

__all__ = [
    "MAX_PRIORITY",
    "MAX_SECONDS",
    "MIN_PRIORITY",
    "NO_HEADERS",
    "Count",
    "ExceptionNames",
    "FunctionName",
    "Headers",
    "Key",
    "Model",
    "Moment",
    "PositiveSeconds",
    "Priority",
    "QueueName",
    "Seconds",
    "ServedQueue",
    "check_key",
    "check_moment",
    "check_positive_seconds",
    "check_priority",
    "check_queue",
    "check_seconds",
    "describe",
    "has_module",
    "is_storable",
    "with_article",
]

T = TypeVar("T")

# A reservation looks at each priority that is in use, so their number is bounded.
MIN_PRIORITY: Final = -100
MAX_PRIORITY: Final = 100
MAX_SECONDS: Final = 10 * 365 * 86400.0
_QUEUE_HINT: Final = "1 to 128 characters of A-Z a-z 0-9 _ . : / -"
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_OUT_OF_YEARS: Final = "in UTC it lies outside the years 1 to 9999; give another moment"
# By pronunciation: "a User", "a OneWay", "an ndarray".
_VOWEL: Final = re.compile(r"(?!one|eu)(?:[aeio]|nd)", re.IGNORECASE)


def _utc(moment: datetime) -> datetime:
    try:
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("moment", _OUT_OF_YEARS) from None


def has_module(name: str) -> bool:
    """Return whether an exception class's name has its module; one without matches no class."""
    return "." in name or ":" in name


def _name_of_exception(entry: object) -> object:
    if isinstance(entry, type) and issubclass(entry, BaseException):
        return class_name(entry)
    entry = plain(entry)
    if not isinstance(entry, str):
        message = "give exception classes, or their names with the module"
        raise PydanticCustomError("exception_name", message)
    if not has_module(entry):
        found = getattr(builtins, entry, None)
        is_builtin = isinstance(found, type) and issubclass(found, BaseException)
        example = f"builtins.{entry}" if is_builtin else "package.module.Class"
        message = "give the class itself, or its name with the module, '{example}' say"
        raise PydanticCustomError("exception_name", message, {"example": example})
    return entry


@dataclass(frozen=True)
class _Hint:
    """The text of the error for every value that a type refuses.

    pydantic-core applies it: it costs nothing where the value is accepted.
    """

    text: str

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="sitq_hint", custom_error_message=self.text
        )


def _as_tuple(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, tuple):
        message = "give a tuple of exception classes, (ValueError,) say"
        raise PydanticCustomError("exception_names", message)
    return value


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
QueueName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$"),
    _Hint(f"give {_QUEUE_HINT}, as str"),
]
ServedQueue = Annotated[
    str,
    Field(pattern=r"^(\*|[A-Za-z0-9_.:/-]{1,128})$"),
    _Hint(f'give {_QUEUE_HINT}, as str, or "*" for every queue'),
]
FunctionName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,1024}$")]
Key = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]{1,256}$"),
    _Hint("give 1 to 256 characters of text, no control characters, as str"),
]
Seconds = Annotated[
    float,
    Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False),
    _Hint("give seconds from 0 up to ten years, as int or float"),
]
PositiveSeconds = Annotated[
    float,
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
    _Hint("give seconds of more than 0, up to ten years, as int or float"),
]
Headers = Annotated[
    Mapping[str, str],
    AfterValidator(lambda headers: MappingProxyType(dict(headers))),
    PlainSerializer(dict, return_type=dict[str, str]),
]
ExceptionNames = Annotated[
    tuple[Annotated[type[BaseException] | str, BeforeValidator(_name_of_exception)], ...],
    BeforeValidator(_as_tuple),
]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Priority = Annotated[
    int,
    Field(ge=MIN_PRIORITY, le=MAX_PRIORITY),
    _Hint(f"give an int from {MIN_PRIORITY} to {MAX_PRIORITY}"),
]


class _Signature:
    """Shows ``help`` and ``inspect.signature`` the parameters of a model.

    pydantic makes a signature when a model is built, which is at its first use, and writes its
    validators into the annotations.
    """

    def __get__(self, _: object, model: type[BaseModel]) -> inspect.Signature:
        try:
            hints = get_type_hints(model)
        except NameError:  # a subclass has an annotation that only a type checker can resolve
            hints = {}
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    keyword,
                    default=inspect.Parameter.empty
                    if field.is_required()
                    else field.get_default(call_default_factory=True),
                    annotation=hints.get(name, field.annotation),
                )
                for name, field in model.model_fields.items()
            ],
            return_annotation=None,
        )


class Model(BaseModel):
    """The base of the models: frozen and strict."""

    __signature__: ClassVar[inspect.Signature] = cast("inspect.Signature", _Signature())

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        defer_build=True,  # a program does not pay at its start for models that it does not use
    )

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        """Keep the signature, which pydantic has just replaced by its own."""
        cls.__signature__ = Model.__dict__["__signature__"]


class _Check(Generic[T]):
    """Checks one value by a rule: returns it as a plain value, or raises `ValidationError`."""

    def __init__(self, rule: Any) -> None:
        config = ConfigDict(strict=True, defer_build=True)
        self._rule: Final[TypeAdapter[T]] = TypeAdapter(rule, config=config)

    def __call__(self, name: str, value: object) -> T:
        """Return the value.

        Args:
            name: the parameter's name, for the error.
            value: the value to check.

        Raises:
            ValidationError: the rule refuses it.
        """
        value = plain(value)
        try:
            return self._rule.validate_python(value)
        except pydantic.ValidationError as error:
            (first, *_) = error.errors(include_url=False, include_context=False)
        raise ValidationError(f"{name}: {first['msg']} (got {type(value).__name__})")


check_queue: Final = _Check[str](QueueName)
check_key: Final = _Check[str](Key)
check_priority: Final = _Check[int](Priority)
check_seconds: Final = _Check[float](Seconds)
check_positive_seconds: Final = _Check[float](PositiveSeconds)


def check_moment(name: str, value: object) -> datetime:
    """Return a moment in UTC; the parameters are those of the other checks.

    Raises:
        ValidationError: it is not an aware datetime, or is outside the years 1 to 9999 in UTC.
    """
    value = plain(value)
    if not isinstance(value, datetime):
        raise _refusal(name, value, "give an aware datetime, such as datetime.now(UTC)")
    try:
        if value.utcoffset() is not None:
            return value.astimezone(UTC)
    except OverflowError:
        raise _refusal(name, value, _OUT_OF_YEARS) from None
    except Exception as error:
        message = (
            f"{name}: its tzinfo ({type(value.tzinfo).__name__}) raised {type(error).__name__}"
        )
        raise ValidationError(message) from error
    hint = (
        "a naive datetime has no time zone; "
        "use datetime.now(UTC), or .replace(tzinfo=...) with the zone that is meant"
    )
    raise _refusal(name, value, hint)


def _refusal(name: str, value: object, hint: str) -> ValidationError:
    return ValidationError(f"{name}: {hint} (got {type(value).__name__})")


def is_storable(text: str) -> bool:
    """Return whether every store can keep a text: no NUL character, and no part of a pair."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def with_article(kind: type) -> str:
    """Return a type's name with its article."""
    name = kind.__qualname__
    return f"an {name}" if _VOWEL.match(name) else f"a {name}"


def describe(error: pydantic.ValidationError) -> str:
    """Return one line that names the refused fields, the reasons and the types; no values."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(step) for step in item["loc"]) or "value"
        parts.append(f"{where}: {item['msg']} (got {type(item['input']).__name__})")
    return "; ".join(parts)
