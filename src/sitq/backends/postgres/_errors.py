"""Errors of PostgreSQL and its driver as errors of sitq.

The server's details and hints may quote rows and keys, so only its messages are passed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    BackendValueError,
    SitqError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "POOLED",
    "LostError",
    "is_duplicate",
    "is_passing",
    "is_read_only",
    "server_message",
    "sqlstate_of",
    "translate_error",
]

POOLED: Final = (
    "a pooler is in between, which may give each transaction another connection: "
    "say prepared_statements=False, or connect to the server itself"
)

# Codes, or classes of codes, of https://www.postgresql.org/docs/current/errcodes-appendix.html
_KINDS: Final[Mapping[str, type[BackendError]]] = {
    "08": BackendConnectionError,
    "28": BackendConnectionError,  # who the user is, or the password
    "3D": BackendConnectionError,  # no such database
    "57": BackendConnectionError,  # shut down, or starting
    "42501": BackendConnectionError,  # a right is missing
    "40": BackendBusyError,  # deadlock, serialization
    "22": BackendValueError,
    "23": BackendValueError,  # a constraint
    "54": BackendValueError,  # too long for a row or an index
    "53300": BackendBusyError,  # too many connections
    "55": BackendBusyError,  # lock not available
    "57014": BackendBusyError,  # statement_timeout
    "25": BackendFullError,  # read-only
    "26000": BackendConnectionError,  # another connection's prepared statement
    "42P05": BackendConnectionError,  # likewise
    "53": BackendFullError,
    "3F": BackendFormatError,  # no such schema
    "42": BackendFormatError,  # no such table, column or function
    "XX": BackendFormatError,  # damaged
}
# A statement that writes came to a server, or a transaction, that takes none.
_READ_ONLY: Final = "25006"
_OF_ANOTHER: Final = {"26000", "42P05"}
_DUPLICATE: Final = "23505"
# Errors that were rolled back, and that may be gone with the next try.
_PASSING: Final = {"40001", "40P01", "0A000"}  # the last: a plan from before a migration


class LostError(Exception):
    """The connection was lost; whether the last statement was carried out is unknown."""


def sqlstate_of(error: BaseException) -> str:
    """Return the server's code of an error; empty if it is not an error of the server's."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


def is_passing(error: BaseException) -> bool:
    """Return whether nothing was changed and the next try may succeed."""
    return sqlstate_of(error) in _PASSING


def translate_error(operation: str, place: str, error: BaseException) -> BaseException:
    """Return an error of the driver as a `BackendError` that names operation, place and cause."""
    if isinstance(error, SitqError):
        return error
    where = f"{operation} on {place}"
    if isinstance(error, LostError | OSError | EOFError):
        lost = BackendConnectionError(f"{where}: {str(error) or type(error).__name__}")
        lost.__cause__ = error
        return lost
    state = sqlstate_of(error)
    if state:
        kind = _KINDS.get(state) or _KINDS.get(state[:2], BackendError)
        # The server's text is all that is kept: a chained error would show its details too.
        text = f"{server_message(error) or state} ({state})"
        if state in _OF_ANOTHER:
            text += f": {POOLED}"
        translation = kind(f"{where}: {text}")
        translation.__suppress_context__ = True
        return translation
    if isinstance(error, ValueError | ArithmeticError | TypeError):
        # Pydantic's too. The text of the error is left out: it would show the values.
        return BackendFormatError(f"{where}: there is a row that is none of sitq's")
    return error


def is_duplicate(error: BaseException) -> bool:
    """Return whether a row was refused because one with the same id or key is stored."""
    return sqlstate_of(error) == _DUPLICATE


def is_read_only(error: BaseException) -> bool:
    """Return whether nothing was changed because this server takes no writes, or none any more."""
    return sqlstate_of(error) == _READ_ONLY


def server_message(error: BaseException) -> str:
    """Return the server's message; what the driver says of a value would quote it."""
    if getattr(error, "severity", "") is None:  # no server has said this
        return "the driver cannot send one of the values"
    return str(error.args[0]) if error.args else ""
