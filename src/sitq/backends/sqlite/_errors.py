"""Translate SQLite's errors, retry while the file is locked, and roll back."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING, Final, TypeVar

from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    BackendValueError,
    SitqError,
    UnknownOutcomeError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BUSY_SECONDS",
    "is_busy",
    "is_shared",
    "is_undone",
    "retrying",
    "roll_back",
    "translate_error",
    "unknown",
]

T = TypeVar("T")

# For how long to try again while the database is locked, and the pauses; in seconds.
BUSY_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.0001
_LONGEST_PAUSE: Final = 0.02
# A rollback that runs out of memory has done nothing, and may succeed a moment later.
_TRIES: Final = 3


def roll_back(connection: sqlite3.Connection) -> bool:
    """Roll back a transaction if one is open; return whether none is open any more.

    Raises nothing: the caller reports the error that came before.
    """
    for _ in range(_TRIES):
        if not connection.in_transaction:
            return True
        try:
            connection.execute("ROLLBACK")
        except BaseException:  # noqa: BLE001, S112 - tried again, or the connection is replaced
            continue
    return not connection.in_transaction


def is_undone(error: BaseException) -> bool:
    """Return whether a COMMIT that raised this error has certainly committed nothing.

    An I/O error may come after the transaction was written to the log. Any other exception, such
    as a MemoryError, may come after the commit itself.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return False
    return bool(code == sqlite3.SQLITE_IOERR_WRITE or code & 0xFF != sqlite3.SQLITE_IOERR)


# Primary result codes of https://www.sqlite.org/rescode.html
_KINDS: Final[Mapping[int, type[BackendError]]] = {
    sqlite3.SQLITE_BUSY: BackendBusyError,
    sqlite3.SQLITE_LOCKED: BackendBusyError,
    sqlite3.SQLITE_FULL: BackendFullError,
    sqlite3.SQLITE_READONLY: BackendFullError,
    sqlite3.SQLITE_CANTOPEN: BackendConnectionError,
    sqlite3.SQLITE_IOERR: BackendConnectionError,
    sqlite3.SQLITE_PERM: BackendConnectionError,
    sqlite3.SQLITE_AUTH: BackendConnectionError,
    sqlite3.SQLITE_TOOBIG: BackendValueError,
    sqlite3.SQLITE_CONSTRAINT: BackendValueError,
    sqlite3.SQLITE_MISMATCH: BackendValueError,
    sqlite3.SQLITE_NOTADB: BackendFormatError,
    sqlite3.SQLITE_CORRUPT: BackendFormatError,
}


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_too_large(error: BaseException) -> bool:
    """Return whether the driver cannot pass a value to SQLite because of its size."""
    return isinstance(error, OverflowError) and any(
        word in str(error) for word in ("SQLite INTEGER", "INT_MAX")
    )


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection holds the database, so that a later try may succeed."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_shared(error: BaseException) -> bool:
    """Return whether an error would meet every request, so that single retries are no use."""
    if isinstance(error, sqlite3.Error):
        return is_busy(error)
    return isinstance(error, BackendConnectionError | UsageError | OSError)


def translate_error(operation: str, path: str, error: BaseException) -> BaseException:
    """Return an error of the driver as a `BackendError` that names operation, file and cause."""
    if isinstance(error, SitqError):
        return error
    if isinstance(error, UnicodeEncodeError) or _is_too_large(error):
        return BackendValueError(f"{operation} on {path}: SQLite cannot store one of the values")
    if isinstance(error, ValueError | ArithmeticError | TypeError):
        # Pydantic's too. The text of the error is left out: it would show the values.
        message = f"{operation} on {path}: the file holds a row that is none of sitq's"
        return BackendFormatError(message)
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    kind: type[BackendError] = BackendConnectionError
    if isinstance(error, sqlite3.Error):
        kind = _KINDS.get(_code(error) or 0, BackendError)
    translation = kind(f"{operation} on {path}: {error}")
    translation.__cause__ = error
    return translation


def unknown(operation: str, path: str, error: BaseException) -> UnknownOutcomeError:
    """Return the error for an operation that may be stored, caused by ``error``."""
    if isinstance(error, UnknownOutcomeError):
        return error
    cause = error if isinstance(error, sqlite3.Error | OSError) else type(error).__name__
    message = (
        f"{operation} on {path}: the outcome is unknown: it may be stored, but this failed "
        f"to confirm it: {cause}"
    )
    unknown_outcome = UnknownOutcomeError(message)
    unknown_outcome.__cause__ = error
    return unknown_outcome


def retrying(unit: Callable[[], T], seconds: float, longest: float = _LONGEST_PAUSE) -> T:
    """Call a function, again while the database is locked, for at most ``seconds``.

    The pauses are random. SQLite's own busy handler sleeps by a fixed table, which lets a busy
    writer starve the others.
    """
    give_up = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return unit()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= give_up:
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(pause * 1.5, longest)
