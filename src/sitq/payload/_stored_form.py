"""The stored form of values: fields and members by name, and validators that read them.

A value may have been stored by another version, with its fields and members in another order.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache, partial
from typing import Any, Final

import pydantic
import pydantic_core
from pydantic import BaseModel, RootModel
from pydantic_core import PydanticCustomError, SchemaValidator, core_schema

from sitq._builtin_types import plain as plain_of
from sitq.payload._collision_limits import KeyBudget
from sitq.payload._msgpack import LEAVES

__all__ = [
    "OTHER_MEMBER",
    "ROUNDED",
    "TAG",
    "UNKNOWN_FIELD",
    "Validate",
    "by_name",
    "field_names",
    "is_tagged",
    "nodes",
    "simplify",
    "stored_validator",
    "without_names",
]

# Not a valid name of a field or member, and unlikely as a key of a dict.
TAG: Final = "sitq:"
_NAMED_KEYS: Final = (Enum, tuple, frozenset)
# The most frequent types of leaves.
_NAMELESS: Final = frozenset({type(None), bool, int, float, str})


def is_tagged(plain: Any) -> bool:
    """Return whether a plain value is the tagged form of a model or of an enum's member."""
    if type(plain) is dict:
        return TAG in plain
    return type(plain) is tuple and bool(plain) and type(plain[0]) is str and plain[0] == TAG


def without_names(plain: Any) -> Any:
    """Return a plain value without its tags, for readers that do not know the original type.

    Raises:
        SerializationError: the keys without tags would take too long to put into a dict or set.
    """
    kind = type(plain)
    if kind is dict:
        keys = [without_names(key) for key in plain if key != TAG]
        items = [without_names(item) for key, item in plain.items() if key != TAG]
        KeyBudget().take(keys, dict)
        return dict(zip(keys, items, strict=True))
    if kind is tuple and is_tagged(plain):
        parts = plain[1:]
        if len(parts) == 2 and type(parts[0]) is str:  # noqa: PLR2004 - a member's name and value
            return parts[1]
        if all(type(part) is tuple and len(part) == 2 for part in parts):  # noqa: PLR2004 - a field
            return tuple(without_names(item) for _, item in parts)
    if kind in {list, tuple, set, frozenset}:
        inner = [*map(without_names, plain)]
        if kind in {set, frozenset}:
            KeyBudget().take(inner, set)
        return kind(inner)
    return plain


@cache
def _substitutes() -> tuple[tuple[Any, Callable[[Any], object]], ...]:
    """Return the types that serializers do not know, and how to dump each for pydantic to read.

    Built at the first use: naming pydantic's network types loads many modules.
    """
    import fractions
    import ipaddress

    return (
        (str, str.__str__),
        (int, int.__int__),
        (float, float.__float__),
        ((bytes, bytearray, memoryview), bytes),
        (Mapping, dict),
        (tuple, tuple),
        ((list, deque), list),
        (set, set),
        (frozenset, frozenset),
        (
            (
                ipaddress.IPv4Address,
                ipaddress.IPv6Address,
                ipaddress.IPv4Network,
                ipaddress.IPv6Network,
                ipaddress.IPv4Interface,
                ipaddress.IPv6Interface,
                pydantic.AnyUrl,
                pydantic_core.Url,
                pydantic_core.MultiHostUrl,
                fractions.Fraction,
                complex,
            ),
            str,
        ),
        (re.Pattern, lambda value: value.pattern),
        ((pydantic.SecretStr, pydantic.SecretBytes), lambda value: value.get_secret_value()),
    )


def simplify(value: Any) -> Any:
    """Replace a value that serializers do not know by one that pydantic reads it from."""
    kind = type(value)
    if kind in LEAVES:
        return value
    if kind is list:
        return [simplify(item) for item in value]
    if kind is dict:
        return {simplify(key): simplify(item) for key, item in value.items()}
    if kind in {tuple, set, frozenset}:
        return kind(map(simplify, value))
    if isinstance(value, Enum):
        return simplify(value.value)
    exact = plain_of(value)
    if type(exact) in LEAVES:
        return exact
    for base, replace in _substitutes():
        if isinstance(value, base):
            return simplify(replace(value))
    return value


def by_name(value: Any, plain: Any) -> Any:
    """Return ``plain`` with the names of fields and members added.

    Args:
        value: a value.
        plain: what it was turned into; where the shapes differ, it is left as it is.
    """
    kind = type(value)
    if kind in _NAMELESS:
        return plain
    if isinstance(value, Enum):
        return _member_by_name(value, plain)
    if isinstance(value, RootModel):
        return by_name(value.root, plain)
    if type(plain) is dict:
        return _of_dict(value, plain)
    if (
        type(plain) in {list, tuple}
        and isinstance(value, list | tuple | deque)
        and len(value) == len(plain)
    ):
        pairs = zip(value, plain, strict=True)
        items = [by_name(inner, item) for inner, item in pairs]
        fields = getattr(kind, "_fields", None)
        if isinstance(value, tuple) and type(plain) is tuple and fields:
            return dict(zip(fields, items, strict=True))
        return type(plain)(items)
    is_set = type(plain) in {set, frozenset} and isinstance(value, set | frozenset)
    if is_set and any(isinstance(item, _NAMED_KEYS) for item in value):
        return type(plain)(_key(item) for item in value)
    return plain


def _of_dict(value: Any, plain: dict[Any, Any]) -> Any:
    is_model = isinstance(value, BaseModel)
    if is_model:
        fields = {**vars(value), **(value.model_extra or {})}
    elif dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    elif isinstance(value, Mapping) and len(value) == len(plain):
        pairs = zip(plain.items(), value.items(), strict=True)
        return {
            _key(given) if isinstance(given, _NAMED_KEYS) else key: by_name(inner, item)
            for (key, item), (given, inner) in pairs
        }
    else:
        return plain
    named = {name: by_name(fields.get(name), item) for name, item in plain.items()}
    unset = plain.keys() - value.model_fields_set if is_model else ()
    if unset and TAG not in named:
        named[TAG] = " ".join(sorted(unset))
    return named


def _key(value: Any) -> Any:
    """Return the plain value for what can be a key: one that has a hash."""
    if isinstance(value, Enum):
        return _member_by_name(value, simplify(value))
    if isinstance(value, tuple):
        items = [_key(item) for item in value]
        fields = getattr(type(value), "_fields", None)
        return (TAG, *zip(fields, items, strict=True)) if fields else tuple(items)
    if isinstance(value, frozenset):
        return frozenset(_key(item) for item in value)
    return simplify(value)


def _member_by_name(value: Enum, plain: Any) -> Any:
    is_counted = type(plain) is int and value.name  # a flag with no bits set has none
    return (TAG, value.name, plain) if is_counted else plain


Validate = Callable[[object], Any]

UNKNOWN_FIELD: Final = "sitq_unknown_field"
OTHER_MEMBER: Final = "sitq_other_member"
ROUNDED: Final = "sitq_rounded"
_FIELDS: Final = frozenset({"model-fields", "typed-dict", "dataclass-args"})
_CONFIGURED: Final = frozenset({"model", "dataclass", "typed-dict"})
# The parts of a core schema that do not validate, or that hold values.
_KEPT: Final = frozenset(
    {"cls", "config", "default", "expected", "members", "metadata", "serialization"}
)
# The keys of these parts are the user's names, not those of a core schema.
_BY_NAME: Final = frozenset({"choices", "fields"})
# These types are stored unchanged.
_PLAIN: Final = frozenset(
    {
        *("bool", "bytes", "date", "datetime", "decimal", "dict", "float", "frozenset", "int"),
        *("list", "set", "str", "time", "timedelta", "tuple", "uuid"),
    }
)
# Values under these were stored in another form: as JSON, or by a serializer of the user's.
_CUSTOM_SERIALIZED_TYPES: Final = frozenset({"json", "lax-or-strict"})
_SERIALIZERS: Final = frozenset({"format", "function-plain", "function-wrap", "to-string"})


def stored_validator(schema: object) -> Validate:
    """Return a validator for stored plain values, which have fields by name."""
    # The validators that pydantic has built for the models' classes lack these rules.
    validator = SchemaValidator(_ruled(schema, {}, lax=False), _use_prebuilt=False)
    return partial(validator.validate_python, by_alias=False, by_name=True)


def nodes(schema: object) -> Iterator[Mapping[str, Any]]:
    """Yield all parts of a core schema."""
    if isinstance(schema, Mapping):
        yield schema
        for key, value in schema.items():
            if key not in _KEPT:
                is_map = key in _BY_NAME and isinstance(value, Mapping)
                yield from nodes([*value.values()] if is_map else value)
    elif isinstance(schema, list | tuple):
        for each in schema:
            yield from nodes(each)


def field_names(node: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields of a part of a core schema."""
    fields = node.get("fields", ())
    if isinstance(fields, Mapping):
        return [*fields]
    return [each if isinstance(each, str) else each["name"] for each in fields]


def _ruled(schema: Any, config: Mapping[str, Any], *, lax: bool) -> Any:
    """Copy a core schema with the rules of what is stored.

    Args:
        schema: the core schema, or a part of it.
        config: that of the model around.
        lax: whether plain values may have been written in another form.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_ruled(each, config, lax=lax) for each in schema)
    if not isinstance(schema, Mapping):
        return schema
    if _is_path(schema):
        return {**schema, "strict": True}
    kind = schema.get("type")
    lax = lax or _is_rewritten(schema)
    if kind in _CONFIGURED:
        config = schema.get("config") or (config if kind == "typed-dict" else {})
    copy = dict(schema)
    for key in schema.keys() - _KEPT:
        value = schema[key]
        if key in _BY_NAME and isinstance(value, Mapping):
            copy[key] = {name: _ruled(each, config, lax=lax) for name, each in value.items()}
        else:
            copy[key] = _ruled(value, config, lax=lax)
    allows = schema.get("extra_behavior") or config.get("extra_fields_behavior")
    if kind in _FIELDS and allows != "allow":
        copy["extra_behavior"] = "forbid"
    if "config" in copy:
        copy["config"] = {**copy["config"], "strict": False}
    # A strict model accepts instances only.
    copy["strict"] = kind in _PLAIN and not lax
    return _with_checks(copy, refuses=allows != "allow", lax=lax)


def _is_rewritten(schema: Mapping[str, Any]) -> bool:
    serialization = schema.get("serialization")
    return schema.get("type") in _CUSTOM_SERIALIZED_TYPES or (
        isinstance(serialization, Mapping) and serialization.get("type") in _SERIALIZERS
    )


def _is_path(schema: Mapping[str, Any]) -> bool:
    """Return whether a part is that of a path, which is stored as a path."""
    inner = schema.get("lax_schema")
    return isinstance(inner, Mapping) and inner.get("custom_error_type") == "path_type"


def _with_checks(node: dict[str, Any], *, refuses: bool, lax: bool) -> Any:
    """Add what core schemas have no option for."""
    kind = node.get("type")
    if kind == "model":
        node = _checked_before(node) if node.get("custom_init") and refuses else node
        return (
            node
            if node.get("root_model")
            else _before(node, _with_fields_set, core_schema.no_info_wrap_validator_function)
        )
    if kind == "float" and not lax:
        return _before(node, _lossless_float)
    if kind == "literal":
        return _before(node, partial(_one_of, node["expected"]))
    if kind == "enum":
        return _before(node, partial(_member, node["cls"]))
    if kind == "named-tuple":
        return _before(node, _fields_of)
    return node


def _before(
    node: dict[str, Any],
    check: Callable[..., Any],
    around: Callable[..., Any] = core_schema.no_info_before_validator_function,
) -> Any:
    return around(check, node, ref=node.pop("ref", None))


def _with_fields_set(value: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
    """Read a model, and restore which of its fields were not set."""
    unset = value.get(TAG) if type(value) is dict else None
    if type(unset) is not str:
        return handler(value)
    made = handler({name: each for name, each in value.items() if name != TAG})
    if isinstance(made, BaseModel):
        made.__pydantic_fields_set__.difference_update(unset.split(" "))
    return made


def _lossless_float(value: Any) -> Any:
    """Refuse a number that a float would round; other ints are allowed (PEP 484)."""
    if type(value) is float or (type(value) is int and _is_float(value)):
        return value
    if type(value) is int:
        raise PydanticCustomError(ROUNDED, "Input would be rounded to a float")
    raise PydanticCustomError("float_type", "Input should be a valid number")


def _is_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def _member(cls: type[Enum], value: Any) -> Any:
    """Read a member that was stored with its name; one without is read by its value."""
    if type(value) is not tuple or len(value) != 3 or value[0] != TAG:  # noqa: PLR2004
        return value
    _, name, number = value
    member = cls(number)
    if member.name != name and cls.__members__.get(name) is not member:
        raise PydanticCustomError(
            OTHER_MEMBER,
            "Input is a member that {enum} does not have by this name and value",
            {"enum": cls.__qualname__},
        )
    return member


def _one_of(expected: list[Any], value: Any) -> Any:
    """Match a value only with an equal one of the same type, and find the member of an enum."""
    for each in expected:
        if isinstance(each, Enum):
            plain: object = each.value
            stored = (TAG, each.name, plain) if type(plain) is int else plain
            if type(value) is type(stored) and value == stored:
                return each
        elif type(value) is type(each) and value == each:
            return value
    raise PydanticCustomError("literal_error", "Input is none of the values that are allowed")


def _fields_of(value: Any) -> Any:
    """Read a NamedTuple that was stored as a tuple of its fields' names and values."""
    if type(value) is tuple and value and value[0] == TAG and type(value[0]) is str:
        return dict(value[1:])
    return value


def _checked_before(model: dict[str, Any]) -> Any:
    """Check the fields before a model's own ``__init__``, which bypasses the rule."""
    fields = next((node["fields"] for node in nodes(model) if node.get("type") in _FIELDS), None)
    if not isinstance(fields, Mapping):  # a root model
        return model

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in fields:
                    raise PydanticCustomError(UNKNOWN_FIELD, "unknown field {name}", {"name": name})
        return value

    return _before(model, check)
