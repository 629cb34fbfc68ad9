"""Advice for errors about values that cannot be stored; it shows types, never values.

Packages are recognised by the names of their modules: none of them is imported.
"""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from sitq._validation import with_article

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["advice_for"]

_MOST: Final = 10_000
_DEEPEST: Final = 32
_OWN: Final = frozenset({"pydantic", "pydantic_core", "sitq", *sys.stdlib_module_names})
_OR: Final = "or make the class a dataclass or a pydantic model"
# By package: a class and the advice for its instances. The first class that matches counts.
_ADVICE: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "numpy": (
        ("generic", "convert a numpy scalar with .item(), or with int() or float()"),
        ("ndarray", "pass array.tolist(), or save the array and pass its path"),
    ),
    "pandas": (
        ("DataFrame", "pass frame.to_dict('records'), or save the frame and pass its path"),
        ("Series", "pass series.tolist(), or save the series and pass its path"),
        ("Index", "pass index.tolist()"),
        ("Timestamp", "pass timestamp.to_pydatetime()"),
        ("Timedelta", "pass timedelta.to_pytimedelta()"),
        ("NaTType", "pass None"),
        ("NAType", "pass None"),
    ),
    "msgspec": (
        ("Struct", f"pass msgspec.to_builtins(value) and use msgspec.convert in the task, {_OR}"),
        ("UnsetType", "pass None"),
    ),
}
_ATTRS: Final = f"pass attrs.asdict(value) and make the instance in the task, {_OR}"


def advice_for(value: object) -> str:
    """Return the advice to add to the error about a value: the type, its path, and what to do.

    The text is empty if the value holds no unusual type. Keys of dicts are values: they are not
    shown.
    """
    try:
        found = _find_unusual(value)
    except Exception:  # noqa: BLE001 - the user's attributes and iterators
        return ""
    if found is None:
        return ""
    path, kind = found
    where = f"{with_article(kind)} at {'.'.join(path)}" if path else ""
    return "".join(f"; {part}" for part in (where, _advice(kind)) if part)


def _find_unusual(value: object) -> tuple[tuple[str, ...], type] | None:
    """Walk through a value, up to a limit, and return the first unusual type with its path."""
    left = _MOST
    waiting: list[tuple[tuple[str, ...], object, int]] = [((), value, 0)]
    while waiting and left:
        left -= 1
        path, each, depth = waiting.pop()
        kind = type(each)
        inner = _parts(each, kind) if depth < _DEEPEST else []
        if inner is None:
            return path, kind
        waiting += [((*path, *step), part, depth + 1) for step, part in reversed(inner[:left])]
    return None


def _parts(value: Any, kind: type) -> list[tuple[tuple[str, ...], object]] | None:
    """Return the parts of a value, each with the step to it; ``None`` if its type is unusual."""
    if _advice(kind):
        return None
    if issubclass(kind, BaseModel):
        fields = {**vars(value), **(value.model_extra or {})}
        return [((name,), part) for name, part in fields.items()]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return [((name,), getattr(value, name)) for name in names if hasattr(value, name)]
    if issubclass(kind, dict):
        return [((), part) for part in (*value, *value.values())]
    if issubclass(kind, list | tuple):
        return [((str(index),), part) for index, part in enumerate(value)]
    if issubclass(kind, set | frozenset):
        return [((), part) for part in value]
    usual = (
        kind.__module__.partition(".")[0] in _OWN
        or issubclass(kind, Enum)
        or hasattr(kind, "__get_pydantic_core_schema__")
    )
    return [] if usual else None


def _advice(kind: type) -> str:
    if "__attrs_attrs__" in vars(kind):
        return _ATTRS
    names: dict[str, set[str]] = {}
    for base in kind.__mro__:
        names.setdefault(base.__module__.partition(".")[0], set()).add(base.__name__)
    for package, known in _ADVICE.items():
        if package in names:
            return next((advice for name, advice in known if name in names[package]), "")
    return ""
