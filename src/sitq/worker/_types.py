"""What users' objects are, told by their types: no code of their classes runs.

``isinstance`` reads ``__class__``, and ``inspect.isawaitable`` looks attributes up. Both may be
the user's code.
"""

from __future__ import annotations

from inspect import CO_ITERABLE_COROUTINE
from types import GeneratorType
from typing import Any, Final

__all__ = ["is_awaitable", "part_of"]

_MRO: Final = type.__dict__["__mro__"]
_NAMES: Final = type.__dict__["__dict__"]
_MEMBERS: Final = BaseExceptionGroup.__dict__["exceptions"]


def is_awaitable(value: object) -> bool:
    """Return whether ``await`` takes a value."""
    kind = type(value)
    if kind is GeneratorType:
        generator: Any = value
        return bool(generator.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return any("__await__" in _NAMES.__get__(base) for base in _MRO.__get__(kind))


def part_of(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return an error if it is of a kind, or the part of a group that is; else ``None``.

    Args:
        error: what was raised.
        kind: a class of Python's, asyncio's or trio's.
    """
    if issubclass(type(error), kind):
        return error
    if not issubclass(type(error), BaseExceptionGroup):
        return None
    found = (part_of(each, kind) for each in _MEMBERS.__get__(error))
    parts = [part for part in found if part is not None]
    return BaseExceptionGroup("", parts) if parts else None
