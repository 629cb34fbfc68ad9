"""Turn a task's exception into the text that is stored: its own frames, no local variables."""

from __future__ import annotations

import os
from pathlib import Path
from traceback import TracebackException
from typing import Final

from sitq._exceptions import exit_of

__all__ = ["MAX_ERROR", "MAX_TRACEBACK", "Raised", "error_text", "traceback_text"]

MAX_ERROR: Final = 4_000
MAX_TRACEBACK: Final = 64_000
# The error's class may have attributes of its own by the names of an exception's.
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]
_OURS: Final = str(Path(__file__).resolve().parents[1]) + os.sep


class Raised:
    """An exception of the task's own code."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        trace = _TRACEBACK.__get__(error)
        # The first frame is that of sitq, which caught it.
        _TRACEBACK.__set__(error, trace.tb_next if trace else None)
        self.error: Final = error


def error_text(error: BaseException) -> str:
    """Return ``"ValueError: text"``, whatever the error's own ``str()`` does."""
    name = _name_of(type(error))
    try:
        text = str.__str__(str(error))  # a subclass may format itself
    except BaseException as inner:  # noqa: BLE001 - the error's own __str__ is user code
        _raise_exit(inner)
        text = f"<str() of it raised {_name_of(type(inner))}>"
    return _clean(f"{name}: {text}" if text else name, MAX_ERROR)


def _name_of(kind: type[BaseException]) -> str:
    try:
        name = str.__str__(kind.__qualname__)
        if kind.__module__ in {"builtins", "__main__", "__mp_main__"}:
            return name
        name = f"{kind.__module__!s}.{name}"
    except BaseException as inner:  # noqa: BLE001 - a metaclass is user code too
        _raise_exit(inner)
        return "Exception"
    return name


def traceback_text(error: BaseException) -> str | None:
    """Return the traceback without sitq's own frames, or ``None`` if it cannot be formatted."""
    try:
        trace = TracebackException.from_exception(error, compact=True)
        _only_theirs(trace)
        return _clean("".join(trace.format()), MAX_TRACEBACK)
    except BaseException as inner:  # noqa: BLE001 - the error's own code may raise anything
        _raise_exit(inner)
        return None


def _raise_exit(inner: BaseException) -> None:
    """Raise an error again if a signal handler raised it, since it ends the process."""
    if exit_of(inner) is not None:
        raise inner


def _only_theirs(trace: TracebackException) -> None:
    """Remove sitq's frames, also from causes, contexts and members of groups."""
    todo: list[TracebackException | None] = [trace]
    while todo:
        each = todo.pop()
        if each is None:
            continue
        each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_OURS)]
        todo += [each.__cause__, each.__context__, *(each.exceptions or ())]


def _clean(text: str, limit: int) -> str:
    """Return a text that every store can keep: valid UTF-8 of bounded length."""
    if len(text) > limit:
        half = limit // 2
        text = (
            f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
