"""What ends the process while a task runs: signals, and the end of a child that a task forked."""

from __future__ import annotations

import dis
import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from sitq.worker._types import leaves_of

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["end_child", "exit_of"]

_TRACEBACK: Final = BaseException.__dict__["__traceback__"]
_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def exit_of(error: BaseException) -> BaseException | None:
    """Return the part of an error by which a signal ends the process; ``None`` if there is none.

    That is what a handler of the `signal` module raised while the task's code ran in the loop's
    thread, and the KeyboardInterrupt of Python's own handler. What the code raised itself, by
    ``sys.exit()`` say, is an error of the task.
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
        # A handler is given the frame that it has interrupted; nothing else is.
        if before is not None and _was_given(trace.tb_frame, before):
            return True
        before = trace.tb_frame
        raised_itself = before.f_code.co_code[trace.tb_lasti] == _RAISE
        trace = trace.tb_next
    # Python's own handler is no Python function, and has no frame.
    return issubclass(type(error), KeyboardInterrupt) and not raised_itself


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    """Return whether a frame is among the arguments of another."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 1]
    values = [frame.f_locals.get(name) for name in names]
    rest = [each for value in values if type(value) is tuple for each in value]
    return any(value is interrupted for value in (*values, *rest))


def end_child(error: BaseException | None) -> NoReturn:
    """End a process that a task forked, as its interpreter would; no other code of ours runs.

    The loop, its descriptors and the store's connections are the parent's: to go on with them
    would harm it.

    Args:
        error: what the task's function raised in the child.
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
