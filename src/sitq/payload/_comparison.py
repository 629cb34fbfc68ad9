"""Comparison of a value with its stored form, to find a loss; texts show types, never values."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from datetime import datetime, time
from decimal import Decimal
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel

from sitq._builtin_types import plain_member
from sitq._validation import with_article

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

__all__ = ["difference", "loss"]

_MISSING: Final = object()
_ANY_FIELD: Final[frozenset[str]] = frozenset()


class _Finding(NamedTuple):
    """A difference, and the steps that lead to it."""

    text: str
    steps: tuple[object, ...] = ()

    def within(self, step: object) -> _Finding:
        return _Finding(self.text, (step, *self.steps))


def difference(sent: Any, back: Any, fields: Container[str] = _ANY_FIELD) -> str | None:
    """Describe how ``back`` differs from ``sent``; ``None`` if type and content are the same.

    NaN is the same as NaN. Models and dataclasses are the same if their fields are. An int where
    a float is annotated is what type checkers allow (PEP 484), so it may arrive as its equal.

    Args:
        sent: the value.
        back: what it has become.
        fields: keys of dicts that are names of fields, and may be shown.
    """
    return _described(_difference(sent, back), fields)


def loss(given: Any, back: Any, fields: Container[str] = _ANY_FIELD) -> str | None:
    """Describe what validation dropped from ``given``; ``None`` if nothing is lost.

    A validator may turn a value into another. These changes are losses: only the class is dropped
    (a member of a ``StrEnum`` becomes a ``str``), keys vanish, a number is rounded, or a dict or
    list is read as a model or NamedTuple.
    """
    return _described(_loss(given, back), fields)


def _described(finding: _Finding | None, fields: Container[str]) -> str | None:
    """Describe a finding with its path; a dict's key is shown only if it is a field's name."""
    if finding is None:
        return None
    path = ".".join(str(step) for step in finding.steps if type(step) is int or step in fields)
    return f"at {path}: {finding.text}" if path else finding.text


def _difference(sent: Any, back: Any) -> _Finding | None:
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
            (name, getattr(sent, name, _MISSING), getattr(back, name, _MISSING)) for name in names
        )
    if isinstance(sent, Mapping):
        return _of_mappings(sent, back)
    if isinstance(sent, list | tuple | deque):
        same = len(sent) == len(back) and _extra(sent) == _extra(back)
        steps = kind._fields if _is_named(sent) else range(len(sent))
        return _first(zip(steps, sent, back, strict=False)) if same else _changed(kind)
    if isinstance(sent, set | frozenset):
        return _of_sets(sent, back)
    return None if _scalars_equal(sent, back) else _changed(kind)


def _loss(given: Any, back: Any) -> _Finding | None:
    if given is back:
        return None
    kind = type(given)
    if kind is not type(back):
        return _loss_of_kind(given, back)
    items: Iterable[tuple[object, Any, Any]]
    if kind is dict:
        if len(given) > len(back):
            return _Finding("keys that the annotation does not know would be dropped")
        keys = zip(repeat(None), given, back, strict=False)
        items = chain(keys, zip(given, given.values(), back.values(), strict=False))
    elif kind in {list, tuple} and len(given) == len(back):
        items = zip(range(len(given)), given, back, strict=True)
    elif kind in {set, frozenset}:
        arrivals = {item: item for item in back}
        items = ((None, item, arrivals.get(item, item)) for item in given)
    else:
        return None
    return _first(items, _loss)


def _loss_of_kind(given: Any, back: Any) -> _Finding | None:
    kind, arrived = type(given), type(back)
    exact = plain_member(given)
    if type(exact) is not kind and type(exact) is arrived:
        return _difference(exact, back)  # losing only the class of a plain value is allowed
    rounded = arrived is float and (kind is Decimal or (kind is int and given != back))
    if rounded:
        return _Finding(f"{with_article(kind)} would be rounded to a float")
    if (
        issubclass(kind, arrived)
        or (kind is dict and not isinstance(back, Mapping))
        or (kind is list and _is_named(back))
    ):
        return _arrives(kind, arrived)
    return None


def _is_named(value: object) -> bool:
    """Return whether a value is a NamedTuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _of_kinds(sent: Any, back: Any) -> _Finding | None:
    kind, arrived = type(sent), type(back)
    exact = plain_member(sent)
    if type(exact) is not kind and type(exact) is arrived:
        return None if _scalars_equal(exact, back) else _changed(arrived)
    if kind is int and arrived is float:
        return None if sent == back else _Finding("an int would be rounded to a float")
    return _arrives(kind, arrived)


def _arrives(kind: type, arrived: type) -> _Finding:
    return _Finding(f"{with_article(kind)} would arrive as {with_article(arrived)}")


def _changed(kind: type) -> _Finding:
    return _Finding(f"{with_article(kind)} would arrive changed")


def _first(
    items: Iterable[tuple[object, Any, Any]],
    compare: Callable[[Any, Any], _Finding | None] = _difference,
) -> _Finding | None:
    """Return the first finding, of items that are each a step and two values."""
    for step, one, other in items:
        found = compare(one, other)
        if found is not None:
            return found.within(step)
    return None


def _of_models(sent: BaseModel, back: BaseModel) -> _Finding | None:
    fields = type(sent).model_fields
    mine, its = vars(sent), vars(back)
    return _first((name, mine.get(name, _MISSING), its.get(name, _MISSING)) for name in fields) or (
        _difference(sent.model_extra, back.model_extra)
    )


def _of_mappings(sent: Mapping[Any, Any], back: Mapping[Any, Any]) -> _Finding | None:
    if len(sent) != len(back) or _extra(sent) != _extra(back):
        return _changed(type(sent))
    keys = zip(repeat(None), sent, back, strict=False)
    return _first(chain(keys, zip(sent, sent.values(), back.values(), strict=False)))


def _extra(collection: object) -> object:
    """Return what some collections hold beside their items."""
    return getattr(collection, "maxlen", None) or getattr(collection, "default_factory", None)


def _of_sets(sent: Any, back: Any) -> _Finding | None:
    kind = type(sent)
    if len(sent) != len(back):
        return _changed(kind)
    arrivals = {item: item for item in back}
    for item in sent:
        other = arrivals.get(item, _MISSING)
        if other is _MISSING:  # NaN does not equal itself
            other = next((each for each in back if _difference(item, each) is None), _MISSING)
        found = _changed(kind) if other is _MISSING else _difference(item, other)
        if found:
            return found
    return None


def _scalars_equal(sent: Any, back: Any) -> bool:
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
