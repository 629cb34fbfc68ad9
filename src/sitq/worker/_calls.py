"""Calls of users' functions: their ends, threads, awaitables, and forked processes.

Values and exceptions are looked at by their type alone: ``isinstance`` reads ``__class__``, and
``inspect.isawaitable`` reads attributes. Both may run the user's code.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from inspect import CO_ITERABLE_COROUTINE
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sitq._loops import no_op

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Raised", "ThreadedCall", "end_child", "is_awaitable"]

_MRO: Final = type.__dict__["__mro__"]
_NAMES: Final = type.__dict__["__dict__"]
# The error's class may have attributes of its own by the names of an exception's.
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]


class Raised:
    """An exception of the task's own code."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        trace = _TRACEBACK.__get__(error)
        # The first frame is that of sitq, which caught it.
        _TRACEBACK.__set__(error, trace.tb_next if trace else None)
        self.error: Final = error


class ThreadedCall:
    """One call of a plain function in a thread."""

    __slots__ = ("_begun", "_done", "_freed", "_left")

    def __init__(self) -> None:
        self._freed: Callable[[], object] = no_op
        self._begun = False
        self._done = False
        self._left = False

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised:
        """Make the call in the thread; return the value in a tuple, or the exception.

        A call that was abandoned before it began is not made: its task may run elsewhere.
        """
        self._begun = True
        ended = (None,) if self._left else _called(function, args, kwargs)
        self._done = True
        if self._left:
            self._freed()
        return ended

    def leave(self, freed: Callable[[], object]) -> bool:
        """Abandon the call; return whether a thread still makes it.

        Args:
            freed: called in the thread once the call has ended.
        """
        self._freed = freed
        self._left = True
        return self._begun and not self._done


def _called(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any] | Raised:
    process = os.getpid()
    try:
        ended: tuple[Any] | Raised = (function(*args, **kwargs),)
    except BaseException as error:  # noqa: BLE001 - it is the task's own error
        if os.getpid() != process:
            end_child(error)
        ended = Raised(error)
    if os.getpid() != process:
        end_child(None)
    return ended


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
