"""Inspection of exceptions that runs no code of their classes."""

from __future__ import annotations

import dis
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

__all__ = ["find_signal_exit", "leaves_of"]

# A subclass may have attributes of its own by these names.
_MEMBERS: Final = BaseExceptionGroup.__dict__["exceptions"]
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]
_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or the leaves of a group, however deeply groups are nested."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if issubclass(type(each), BaseExceptionGroup):
            waiting += reversed(_MEMBERS.__get__(each))
        else:
            yield each


def find_signal_exit(error: BaseException) -> BaseException | None:
    """Return the part of an error by which a signal ends the process; ``None`` if there is none.

    It is what a handler of the `signal` module raised while the task's code ran in the loop's
    thread, or the KeyboardInterrupt of Python's own handler. An exception that the code raised
    itself, such as that of ``sys.exit()``, is an error of the task.
    """
    for leaf in leaves_of(error):
        if issubclass(type(leaf), KeyboardInterrupt | SystemExit) and _is_by_signal(leaf):
            return leaf
    return None


def _is_by_signal(error: BaseException) -> bool:
    trace: TracebackType | None = _TRACEBACK.__get__(error)
    before: FrameType | None = None
    raised_itself = False
    while trace is not None:
        # Only a signal handler gets the interrupted frame as an argument.
        if before is not None and _was_given(trace.tb_frame, before):
            return True
        before = trace.tb_frame
        raised_itself = before.f_code.co_code[trace.tb_lasti] == _RAISE
        trace = trace.tb_next
    # Python's own handler is not a Python function and has no frame.
    return issubclass(type(error), KeyboardInterrupt) and not raised_itself


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    """Return whether a frame is among the arguments of another."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 1]
    values = [frame.f_locals.get(name) for name in names]
    rest = [each for value in values if type(value) is tuple for each in value]
    return any(value is interrupted for value in (*values, *rest))
