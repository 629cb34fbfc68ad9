"""Finds what a value would lose on its way through the store; names types, never values."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel

__all__ = ["difference", "loss"]

_MISSING: Final = object()


def difference(sent: Any, back: Any) -> str | None:
    """Say how ``back`` differs from ``sent``; ``None`` if it is the same in type and content.

    NaN is the same as NaN. Models and dataclasses are the same if their fields are. An int where
    a float is annotated is what type checkers allow (PEP 484), so it may arrive as its equal.
    """
    if sent is back:
        return None
    kind = type(sent)
    if kind is not type(back):
        return _of_kinds(sent, back)
    if isinstance(sent, BaseModel):
        return _of_models(sent, back)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return _first(
            (getattr(sent, name, _MISSING), getattr(back, name, _MISSING)) for name in names
        )
    if isinstance(sent, Mapping):
        return _of_mappings(sent, back)
    if isinstance(sent, list | tuple | deque):
        same = len(sent) == len(back) and _extra(sent) == _extra(back)
        return _verdict(same, kind) or _first(zip(sent, back, strict=False))
    if isinstance(sent, set | frozenset):
        return _of_sets(sent, back)
    return _verdict(_same_leaf(sent, back), kind)


def loss(given: Any, back: Any) -> str | None:
    """Say what validation took from ``given``, though it never asked for less.

    A validator may turn a value into another. Where nothing but a class is dropped (a member of a
    ``StrEnum`` becomes a ``str``), keys vanish, a number is rounded, or a
    dict or list is read as a model or NamedTuple, nobody meant that.
    """
    if given is back:
        return None
    kind = type(given)
    if kind is not type(back):
        return _loss_of_kind(given, back)
    if kind is dict:
        if len(given) > len(back):
            return "keys that the annotation does not know would be dropped"
        pairs = [*zip(given, back, strict=False), *zip(given.values(), back.values(), strict=False)]
    elif kind in {list, tuple} and len(given) == len(back):
        pairs = list(zip(given, back, strict=True))
    elif kind in {set, frozenset}:
        arrivals = {item: item for item in back}
        pairs = [(item, arrivals.get(item, item)) for item in given]
    else:
        return None
    return next(filter(None, (loss(*pair) for pair in pairs)), None)


def _loss_of_kind(given: Any, back: Any) -> str | None:
    kind, arrived = type(given), type(back)
    rounded = arrived is float and (kind is Decimal or (kind is int and given != back))
    if rounded:
        return f"{'an int' if kind is int else 'a Decimal'} would be rounded to a float"
    if (
        issubclass(kind, arrived)
        or (kind is dict and not isinstance(back, Mapping))
        or (kind is list and _is_named(back))
    ):
        return f"a {kind.__qualname__} would arrive as a {arrived.__qualname__}"
    return None


def _is_named(value: object) -> bool:
    """Tell if a value is one of a NamedTuple's."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _of_kinds(sent: Any, back: Any) -> str | None:
    kind, arrived = type(sent), type(back)
    if kind is int and arrived is float:
        return None if sent == back else "an int would be rounded to a float"
    return f"a {kind.__qualname__} would arrive as a {arrived.__qualname__}"


def _verdict(same: bool, kind: type) -> str | None:  # noqa: FBT001
    return None if same else f"a {kind.__qualname__} would arrive changed"


def _first(pairs: Any) -> str | None:
    return next(filter(None, (difference(*pair) for pair in pairs)), None)


def _of_models(sent: BaseModel, back: BaseModel) -> str | None:
    fields = type(sent).model_fields
    mine, its = vars(sent), vars(back)
    return _first((mine.get(name, _MISSING), its.get(name, _MISSING)) for name in fields) or (
        difference(sent.model_extra, back.model_extra)
    )


def _of_mappings(sent: Mapping[Any, Any], back: Mapping[Any, Any]) -> str | None:
    return (
        _verdict(len(sent) == len(back) and _extra(sent) == _extra(back), type(sent))
        or _first(zip(sent, back, strict=False))
        or _first(zip(sent.values(), back.values(), strict=False))
    )


def _extra(collection: object) -> object:
    """Return what some collections hold beside their items."""
    return getattr(collection, "maxlen", None) or getattr(collection, "default_factory", None)


def _of_sets(sent: Any, back: Any) -> str | None:
    kind = type(sent)
    if len(sent) != len(back):
        return _verdict(same=False, kind=kind)
    arrivals = {item: item for item in back}
    for item in sent:
        twin = arrivals.get(item, _MISSING)
        if twin is _MISSING:  # NaN equals nothing, also not itself
            twin = next((other for other in back if difference(item, other) is None), _MISSING)
        found = _verdict(same=False, kind=kind) if twin is _MISSING else difference(item, twin)
        if found:
            return found
    return None


def _same_leaf(sent: Any, back: Any) -> bool:
    if isinstance(sent, float):
        return bool(sent == back) or (math.isnan(sent) and math.isnan(back))
    if isinstance(sent, Decimal):
        return bool(sent.as_tuple() == back.as_tuple())
    if isinstance(sent, datetime | time):
        return bool(
            sent.replace(tzinfo=None) == back.replace(tzinfo=None)
            and sent.fold == back.fold
            and sent.utcoffset() == back.utcoffset()
            and str(sent.tzinfo) == str(back.tzinfo)
        )
    try:
        return bool(sent == back)
    except Exception:  # noqa: BLE001 - a foreign __eq__ may do anything
        return False
