"""Recognize awaitables by their type alone, and end a process that a task forked.

``isinstance`` reads ``__class__``, and ``inspect.isawaitable`` reads attributes. Both may run
the user's code.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from inspect import CO_ITERABLE_COROUTINE
from types import GeneratorType
from typing import Any, Final, NoReturn

__all__ = ["end_child", "is_awaitable"]

_MRO: Final = type.__dict__["__mro__"]
_NAMES: Final = type.__dict__["__dict__"]


def is_awaitable(value: object) -> bool:
    """Return whether a value can be awaited."""
    kind = type(value)
    if kind is GeneratorType:
        generator: Any = value
        return bool(generator.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return any("__await__" in _NAMES.__get__(base) for base in _MRO.__get__(kind))


def end_child(error: BaseException | None) -> NoReturn:
    """End a process that a task forked, with the exit code that its interpreter would give.

    The loop, its descriptors and the store's connections belong to the parent, so no other code
    of sitq may run in the child.

    Args:
        error: the exception of the task's function in the child, if any.
    """
    code: object = 0
    if error is not None:
        code = 1
        with suppress(BaseException):  # its class may have a property of that name
            if issubclass(type(error), SystemExit):
                code = getattr(error, "code", 1)
            if code is not None and type(code) is not int:
                sys.stderr.write(f"{code}\n")
            elif not issubclass(type(error), SystemExit):
                traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    os._exit(code & 0xFF if type(code) is int else int(code is not None))
