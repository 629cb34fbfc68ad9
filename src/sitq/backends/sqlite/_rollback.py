"""The end of a transaction that went wrong."""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["is_undone", "roll_back"]

# A rollback that runs out of memory has done nothing, and may go well a moment later.
_TRIES: Final = 3


def roll_back(connection: sqlite3.Connection) -> bool:
    """Roll back a transaction if one is open; return whether none is open any more.

    It raises nothing: what went wrong before is what the caller is to hear of.
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
