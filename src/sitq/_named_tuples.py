"""NamedTuples as dicts of their fields, so that a change of the fields' order moves no value."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["by_name"]


def by_name(value: Any, plain: Any) -> Any:
    """Return ``plain`` with a dict in the place of each NamedTuple's plain tuple.

    Keys of dicts and items of sets stay tuples: dicts cannot be hashed.

    Args:
        value: a value.
        plain: what it was turned into; where the shapes differ, it is left as it is.
    """
    kind = type(value)
    if type(plain) is dict:
        if isinstance(value, BaseModel):
            return _fields_by_name(vars(value), plain)
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            return _fields_by_name({each: getattr(value, each, None) for each in names}, plain)
        if isinstance(value, Mapping) and len(value) == len(plain):
            pairs = zip(plain.items(), value.values(), strict=True)
            return {key: by_name(inner, item) for (key, item), inner in pairs}
    elif (
        type(plain) in {list, tuple}
        and isinstance(value, list | tuple | deque)
        and len(value) == len(plain)
    ):
        items = [by_name(inner, item) for inner, item in zip(value, plain, strict=True)]
        fields = getattr(kind, "_fields", None)
        if isinstance(value, tuple) and type(plain) is tuple and fields:
            return dict(zip(fields, items, strict=True))
        return type(plain)(items)
    return plain


def _fields_by_name(fields: Mapping[str, Any], plain: dict[Any, Any]) -> dict[Any, Any]:
    return {
        name: by_name(fields[name], item) if name in fields else item
        for name, item in plain.items()
    }
