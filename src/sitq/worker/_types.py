"""What users' objects are, told by their types: no code of their classes runs.

``isinstance`` reads ``__class__``, and ``inspect.isawaitable`` looks attributes up. Both may be
the user's code.
"""

from __future__ import annotations

from inspect import CO_ITERABLE_COROUTINE
from types import GeneratorType
from typing import Any, Final

__all__ = ["is_awaitable"]

_MRO: Final = type.__dict__["__mro__"]
_NAMES: Final = type.__dict__["__dict__"]


def is_awaitable(value: object) -> bool:
    """Return whether ``await`` takes a value."""
    kind = type(value)
    if kind is GeneratorType:
        generator: Any = value
        return bool(generator.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return any("__await__" in _NAMES.__get__(base) for base in _MRO.__get__(kind))
