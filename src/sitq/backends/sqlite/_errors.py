"""What SQLite's errors mean in sitq's words."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    BackendValueError,
    SitqError,
    UnknownOutcomeError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_busy", "translated", "unknown"]

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
    """Return whether the driver says that it cannot hand a value to SQLite."""
    return isinstance(error, OverflowError) and any(
        word in str(error) for word in ("SQLite INTEGER", "INT_MAX")
    )


def is_busy(error: sqlite3.Error) -> bool:
    """Tell if somebody else holds the database, so that a later try may succeed."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def translated(operation: str, path: str, error: BaseException) -> BaseException:
    """An error of the driver as a `BackendError` that names operation, file and cause."""
    if isinstance(error, SitqError):
        return error
    if isinstance(error, UnicodeEncodeError) or _is_too_large(error):
        return BackendValueError(f"{operation} on {path}: SQLite cannot store one of the values")
    if isinstance(error, ValueError | ArithmeticError | TypeError):
        # Pydantic's too. Its text would show the values.
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
    """Return the error for work that may be stored, with what kept the store from confirming it."""
    if isinstance(error, UnknownOutcomeError):
        return error
    cause = error if isinstance(error, sqlite3.Error | OSError) else type(error).__name__
    message = (
        f"{operation} on {path}: the outcome is unknown: it may be stored, but this failed "
        f"to confirm it: {cause}"
    )
    told = UnknownOutcomeError(message)
    told.__cause__ = error
    return told
