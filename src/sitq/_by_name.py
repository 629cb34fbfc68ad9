"""Values by the names of their fields and members, which a deploy may reorder.

Plain values can carry these names as they are; what reads them is in `sitq._reading`.

1. A NamedTuple is a dict of its fields. In a set, or as the key of a dict, where no dict can be, it
   is a tuple of the tag and a pair for each field.
2. A member of an enum whose value is an int is a tuple of the tag, its name and its value.
3. A model with fields that were not set has the names of these under the tag, in one text.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel, RootModel

from sitq._limits import check_keys

__all__ = ["TAG", "by_name", "is_tagged", "without_names"]

# No field and no member has this name, and hardly any dict such a key.
TAG: Final = "sitq:"
_NAMED_KEYS: Final = (Enum, tuple, frozenset)
# Most of what there is.
_NAMELESS: Final = frozenset({type(None), bool, int, float, str})

Simplify = Callable[[Any], Any]


def is_tagged(plain: Any) -> bool:
    """Return whether a plain value stands for a model or a member: as itself it means nothing."""
    if type(plain) is dict:
        return TAG in plain
    return type(plain) is tuple and bool(plain) and type(plain[0]) is str and plain[0] == TAG


def without_names(plain: Any) -> Any:
    """Return a plain value without the tags, for those who do not know what it was made of.

    Raises:
        SerializationError: the keys without tags would take too long to put into a dict or set.
    """
    kind = type(plain)
    if kind is dict:
        keys = [without_names(key) for key in plain if key != TAG]
        items = [without_names(item) for key, item in plain.items() if key != TAG]
        check_keys(keys, dict)
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
            check_keys(inner, set)
        return kind(inner)
    return plain


def by_name(value: Any, plain: Any, simplify: Simplify) -> Any:
    """Return ``plain`` with the names of fields and members in it.

    Args:
        value: a value.
        plain: what it was turned into; where the shapes differ, it is left as it is.
        simplify: turns into a plain value what can be the key of a dict.
    """
    kind = type(value)
    if kind in _NAMELESS:
        return plain
    if isinstance(value, Enum):
        return _member(value, plain)
    if type(plain) is dict:
        return _of_dict(value, plain, simplify)
    if isinstance(value, RootModel):
        return by_name(value.root, plain, simplify)
    if (
        type(plain) in {list, tuple}
        and isinstance(value, list | tuple | deque)
        and len(value) == len(plain)
    ):
        pairs = zip(value, plain, strict=True)
        items = [by_name(inner, item, simplify) for inner, item in pairs]
        fields = getattr(kind, "_fields", None)
        if isinstance(value, tuple) and type(plain) is tuple and fields:
            return dict(zip(fields, items, strict=True))
        return type(plain)(items)
    is_set = type(plain) in {set, frozenset} and isinstance(value, set | frozenset)
    if is_set and any(isinstance(item, _NAMED_KEYS) for item in value):
        return type(plain)(_key(item, simplify) for item in value)
    return plain


def _of_dict(value: Any, plain: dict[Any, Any], simplify: Simplify) -> Any:
    kind = type(value)
    if isinstance(value, RootModel):
        return by_name(value.root, plain, simplify)
    if isinstance(value, BaseModel):
        extra = value.model_extra
        fields = {**vars(value), **extra} if extra else vars(value)
        named = _fields_by_name(fields, plain, simplify)
        unset = plain.keys() - value.model_fields_set
        if unset and TAG not in named:
            named[TAG] = " ".join(sorted(unset))
        return named
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return _fields_by_name(
            {each: getattr(value, each, None) for each in names}, plain, simplify
        )
    if isinstance(value, Mapping) and len(value) == len(plain):
        pairs = zip(plain.items(), value.items(), strict=True)
        return {
            _key(given, simplify) if isinstance(given, _NAMED_KEYS) else key: by_name(
                inner, item, simplify
            )
            for (key, item), (given, inner) in pairs
        }
    return plain


def _fields_by_name(
    fields: Mapping[str, Any], plain: dict[Any, Any], simplify: Simplify
) -> dict[Any, Any]:
    return {
        name: by_name(fields[name], item, simplify) if name in fields else item
        for name, item in plain.items()
    }


def _key(value: Any, simplify: Simplify) -> Any:
    """Return the plain value for what can be a key: one that has a hash."""
    if isinstance(value, Enum):
        return _member(value, simplify(value))
    if isinstance(value, tuple):
        items = [_key(item, simplify) for item in value]
        fields = getattr(type(value), "_fields", None)
        return (TAG, *zip(fields, items, strict=True)) if fields else tuple(items)
    if isinstance(value, frozenset):
        return frozenset(_key(item, simplify) for item in value)
    return simplify(value)


def _member(value: Enum, plain: Any) -> Any:
    is_counted = type(plain) is int and value.name  # a flag with no bits set has none
    return (TAG, value.name, plain) if is_counted else plain
