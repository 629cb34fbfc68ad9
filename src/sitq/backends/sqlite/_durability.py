"""Decide when a commit is flushed to the disk.

SQLite's ``synchronous=FULL`` flushes before a commit is visible, so that all that wait for the
commit wait for the disk. Where less is enough, SQLite commits without a flush here, and the log is
flushed before the acknowledgement, or later. A flush includes all earlier commits.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._operations import FlushPolicy

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping

    from sitq.backends.sqlite._connection import SQLiteConnection

__all__ = ["Durability"]

# For how long a flush that fails is tried again before the outcome is called unknown, and the
# pauses; in seconds.
FLUSH_SECONDS: Final = 1.0
_PAUSE: Final = 0.02
_CAN_FLUSH: Final = hasattr(os, "fdatasync")


class Durability:
    """Apply flush policies to the commits of one connection; in its thread.

    Args:
        log: the path of the write-ahead log; ``None``: SQLite alone decides.
        policies: the policy of an operation; of all others, `FlushPolicy.BEFORE_COMMIT`.
    """

    def __init__(self, log: str | None, policies: Mapping[Callable[..., Any], FlushPolicy]) -> None:
        self._log: Final = log if _CAN_FLUSH else None
        self._policies: Final = policies
        # Whether the connection's ``synchronous`` is FULL; ``None``: not known.
        self._is_full: bool | None = None
        self._is_safe = True
        self._file: int | None = None
        self._is_doubtful = False
        # True if there are commits that a power cut could undo.
        self.is_behind = False

    def __del__(self) -> None:
        """Close the log's file if the connection was collected before it could be closed."""
        self.close()

    def prepare(
        self, connection: sqlite3.Connection, operations: Iterable[Callable[..., Any]]
    ) -> None:
        """Make ready for a transaction that carries out some operations."""
        if self._log is None:
            return
        if self._file is None:
            # Before the commit: after it, an error would say that nothing has happened.
            # SQLite locks nothing in its log, so a descriptor of ours ends no lock of its own.
            self._file = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        policies = [
            self._policies.get(operation, FlushPolicy.BEFORE_COMMIT) for operation in operations
        ]
        is_full = FlushPolicy.BEFORE_COMMIT in policies
        if is_full is not self._is_full:
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            self._is_full = is_full

    def committed(self, *, changed: bool) -> None:
        """Note that the transaction is committed; SQLite flushes nothing if it changed nothing."""
        self._is_safe = changed and bool(self._is_full)
        if changed and self._log is not None:
            self.is_behind = self._is_doubtful or not self._is_full

    def renew(self) -> None:
        """Note that the next transaction comes over another connection."""
        self._is_full = None
        self.close()

    def doubt(self) -> None:
        """Note that a flush by SQLite may have failed: nothing is safe until `flush`."""
        self._is_doubtful = self.is_behind = self._log is not None

    def needs_flush(self, operation: Callable[..., Any]) -> bool:
        """Return whether an operation must be flushed before it is acknowledged.

        This holds even if it has changed nothing: it may have returned another caller's task.
        """
        if self._log is None:
            return False
        policy = self._policies.get(operation, FlushPolicy.BEFORE_COMMIT)
        if self._is_doubtful:
            return policy is not FlushPolicy.DEFERRED
        return policy is FlushPolicy.ACKNOWLEDGED and not self._is_safe

    def flush(self, connection: sqlite3.Connection) -> None:
        """Flush all commits so far.

        Raises:
            OSError: the flush failed.
            sqlite3.Error: the log could not be emptied after an earlier flush had failed.
        """
        if self._log is None:
            return
        if self._is_doubtful:
            self._checkpoint_and_truncate(connection)  # SQLite flushes the file for it
        elif self._file is not None:
            self._is_doubtful = True
            os.fdatasync(self._file)
        self._is_doubtful = False
        self.is_behind = False

    def flush_for_long(self, connection: SQLiteConnection) -> Exception | None:
        """Flush, with retries for `FLUSH_SECONDS`; return the last error, if all failed."""
        give_up = time.monotonic() + FLUSH_SECONDS
        while True:
            try:
                self.flush(connection.opened)
            except Exception as error:  # noqa: BLE001 - it belongs to the callers
                if time.monotonic() >= give_up:
                    return error
            else:
                return None
            time.sleep(_PAUSE)

    def _checkpoint_and_truncate(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the database file and empty it.

        After a failed flush, Linux regards the pages as written: a later flush of the log that
        succeeds proves nothing.
        """
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise OSError(errno.EBUSY, "the log is in use, and a flush of it has failed before")

    def close(self) -> None:
        """Close the log's file. Calling it twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
