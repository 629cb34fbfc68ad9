"""Loggers for calls that must not raise: filters and handlers are the user's code."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from sitq._signal_exits import find_signal_exit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["Log", "fields_of"]

_ExcInfo = tuple[type[BaseException], BaseException, "TracebackType | None"]

# A subclass may have an attribute of its own by this name.
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]


class _Attempted(Protocol):
    """A task that is attempted."""

    @property
    def id(self) -> Any: ...
    @property
    def function(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def attempt(self) -> int: ...


def fields_of(
    worker_id: str, task: _Attempted | None = None, **others: object
) -> dict[str, object]:
    """Return the fields of a worker's log record, about a task if there is one."""
    fields: dict[str, object] = {"worker_id": worker_id}
    if task is not None:
        fields |= {
            "task_id": task.id,
            "function": task.function,
            "queue": task.queue,
            "attempt": task.attempt,
        }
    return fields | others


class Log:
    """A logger of the standard library whose calls raise nothing but what ends the process.

    What a filter or a handler raises is shown on stderr, once for each kind of error, as
    ``logging.raiseExceptions`` has it.

    Args:
        name: the logger's name.
    """

    __slots__ = ("_logger", "_shown")

    def __init__(self, name: str) -> None:
        self._logger: Final = logging.getLogger(name)
        self._shown: set[str] = set()

    def is_on(self, level: int) -> bool:
        """Return whether a record of a level would be made."""
        try:
            return self._logger.isEnabledFor(level)
        except Exception:  # noqa: BLE001 - of a class of the user's; the record's call shows it
            return True

    def info(self, message: str, *args: object, extra: Mapping[str, object] | None = None) -> None:
        """Log at INFO."""
        self._write(logging.INFO, message, args, None, extra)

    def warning(
        self,
        message: str,
        *args: object,
        error: BaseException | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log at WARNING, with the traceback of ``error``."""
        self._write(logging.WARNING, message, args, error, extra)

    def error(
        self,
        message: str,
        *args: object,
        error: BaseException | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log at ERROR, with the traceback of ``error``."""
        self._write(logging.ERROR, message, args, error, extra)

    def _write(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        error: BaseException | None,
        extra: Mapping[str, object] | None,
    ) -> None:
        try:
            if self._logger.isEnabledFor(level):
                self._logger.log(
                    level,
                    message,
                    *args,
                    exc_info=None if error is None else _exc_info(error),
                    extra=_free(extra),
                    stacklevel=3,
                )
        except KeyboardInterrupt:
            raise  # most likely the user's own exception
        except BaseException as failure:  # of a filter's or an error's __str__, say
            if find_signal_exit(failure) is not None:
                raise
            with suppress(Exception):
                self._show(failure)

    def _show(self, failure: BaseException) -> None:
        kind = type(failure).__qualname__
        if logging.raiseExceptions and sys.stderr is not None and kind not in self._shown:
            self._shown.add(kind)
            sys.stderr.write(f"--- Logging error in {self._logger.name} ---\n")
            traceback.print_exception(failure, file=sys.stderr)


def _free(extra: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return the fields that the user's record factory does not set itself.

    A record that has a field already refuses it, and would be lost.
    """
    factory: object = logging.getLogRecordFactory()
    if extra is None or factory is logging.LogRecord:
        return extra
    record = logging.getLogRecordFactory()("sitq", logging.INFO, "", 0, "", (), None)
    return {name: value for name, value in extra.items() if name not in vars(record)}


def _exc_info(error: BaseException) -> _ExcInfo:
    """Return what a log record holds of an error, without running any code of its class."""
    return type(error), error, _TRACEBACK.__get__(error)
