"""When a commit is on the disk: before it can be seen, before it is acknowledged, or soon after.

SQLite's ``synchronous=FULL`` knows the first only, and what waits for a disk holds up everybody
who waits for the commit. Here, SQLite does without the disk where that is too strict, and the
log is flushed afterwards. A later flush includes all that was committed before.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._operations import FlushPolicy

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Durability"]

_CAN_FLUSH: Final = hasattr(os, "fdatasync")


class Durability:
    """Keeps the promises of one connection; for its thread.

    Args:
        log: the path of the write-ahead log; ``None``: all is left to SQLite.
        policies: what is promised of an operation; of all others, `FlushPolicy.BEFORE_COMMIT`.
    """

    def __init__(self, log: str | None, policies: Mapping[Callable[..., Any], FlushPolicy]) -> None:
        self._log: Final = log if _CAN_FLUSH else None
        self._policies: Final = policies
        # What ``synchronous`` of the connection is; ``None``: not known.
        self._is_full: bool | None = None
        self._is_safe = True
        self._file: int | None = None
        self._is_doubtful = False
        # True if a power cut could undo what has been committed.
        self.is_behind = False

    def __del__(self) -> None:
        """Close the log's file if the connection was collected before it could be closed."""
        self.close()

    def prepare(
        self, connection: sqlite3.Connection, operations: Iterable[Callable[..., Any]]
    ) -> None:
        """Make ready for a transaction that carries out some operations.

        Raises:
            OSError: the log cannot be opened, with no file descriptor left, say.
            sqlite3.Error: the connection cannot be set up.
        """
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
        """Note that a flush of SQLite's own may have failed: nothing is safe until `flush`."""
        self._is_doubtful = self.is_behind = self._log is not None

    def needs_flush(self, operation: Callable[..., Any]) -> bool:
        """Tell if a flush must come before an operation that was carried out is acknowledged.

        Even one that has changed nothing: the task that holds a unique key may be another's.
        """
        if self._log is None:
            return False
        policy = self._policies.get(operation, FlushPolicy.BEFORE_COMMIT)
        if self._is_doubtful:
            return policy is not FlushPolicy.DEFERRED
        return policy is FlushPolicy.ACKNOWLEDGED and not self._is_safe

    def flush(self, connection: sqlite3.Connection) -> None:
        """Have the disk keep all that has been committed so far.

        Raises:
            OSError: it could not.
            sqlite3.Error: nor could it put right what a flush that failed has left.
        """
        if self._log is None:
            return
        if self._is_doubtful:
            self._start_anew(connection)  # SQLite flushes the file for it
        elif self._file is not None:
            self._is_doubtful = True
            os.fdatasync(self._file)
        self._is_doubtful = False
        self.is_behind = False

    def _start_anew(self, connection: sqlite3.Connection) -> None:
        """Empty the log into the file.

        After a flush that failed, Linux takes what it could not write for written: a later flush
        of the log that goes well says nothing of it.
        """
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise OSError(errno.EBUSY, "the log is in use, and a flush of it has failed before")

    def close(self) -> None:
        """Give the log up. Calling it twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
