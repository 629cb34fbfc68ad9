"""Open a store's connections, and keep its other files: wake-up file and commit watch."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq.backends.sqlite import _schema
from sitq.backends.sqlite._errors import BUSY_SECONDS, is_busy, retrying
from sitq.backends.sqlite._file import MEMORY, DatabaseFile
from sitq.backends.sqlite._user_commit_watch import CommitWatch
from sitq.backends.sqlite._wakeups import MARK_BYTES, WakeupFile
from sitq.errors import BackendConnectionError, UsageError

if TYPE_CHECKING:
    from sitq.protocols import Topic

__all__ = ["StoreFiles"]

_log: Final = Log(__name__)
_NO_WAKEUPS: Final = "cannot use the wake-up file"


class StoreFiles:
    """One store's files; for the database threads.

    Args:
        path: the database's path, or `MEMORY`.
        synchronous: SQLite's ``synchronous``, ``"FULL"`` or ``"NORMAL"``.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self.path: Final = path
        self.is_file: Final = path != MEMORY
        self._synchronous: Final = synchronous
        self.mark: Final = os.urandom(MARK_BYTES)
        self._file: DatabaseFile | None = None
        self._wakeup_file: WakeupFile | None = None
        self._commits: CommitWatch | None = None

    @property
    def file(self) -> DatabaseFile:
        """Return the file."""
        if self._file is None:
            raise UsageError("the backend is not open")
        return self._file

    def connect(self) -> sqlite3.Connection:
        """Check, open and migrate the file."""
        self._file = DatabaseFile(self.path)
        return self._open(self._file)

    def _open(self, file: DatabaseFile) -> sqlite3.Connection:
        if self.is_file:
            retrying(lambda: _schema.check(file), BUSY_SECONDS)
        connection = retrying(lambda: self._prepared(file), BUSY_SECONDS)
        if self.is_file:
            self._open_wakeup_file(file)
            self._commits = CommitWatch(file)
        return connection

    def finish(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the database file, after another file has replaced that.

        Raises:
            sqlite3.OperationalError: the file is locked.
            BackendConnectionError: another connection still reads from the log.
        """
        try:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            if is_busy(error):
                raise
            _log.warning("%s was replaced; its log cannot be copied into it: %s", self.path, error)
            return
        if busy:
            message = f"{self.path} was replaced by another file, and the old one is still in use"
            raise BackendConnectionError(message)

    def move(self) -> sqlite3.Connection:
        """Open the file that has replaced the store's file."""
        self.close()
        file = DatabaseFile(self.path, create=False)
        self.file.remove_log()
        connection = self._open(file)
        self._file = file
        return connection

    def _open_wakeup_file(self, file: DatabaseFile) -> None:
        try:
            self._wakeup_file = WakeupFile(file.wakeup_file, self.mark)
        except OSError as error:
            _log.warning("%s; other processes find what is new by polling: %s", _NO_WAKEUPS, error)

    def renew_wakeup_file(self) -> bool:
        """Make the wake-up file anew if it was removed or replaced; return whether it was.

        Instances that are opened later would use another file, and would not be woken.
        """
        left = self._wakeup_file
        if left is None or left.is_current():
            return False
        self._wakeup_file = None
        _log.warning("%s was removed or replaced while it was open; it is made anew", left.path)
        self._open_wakeup_file(self.file)
        left.release()
        return True

    def reconnect(self) -> sqlite3.Connection:
        """Open the same file once more, for reads and writes."""
        self.file.check_same()
        return self._prepared(self.file)

    def connect_for_reads(self) -> sqlite3.Connection:
        """Open the same file once more, for reads."""
        connection = self.file.connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _prepared(self, file: DatabaseFile) -> sqlite3.Connection:
        connection = file.connect()
        try:
            if self.is_file:
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    message = f"{self.path}: no write-ahead log on this file system ({mode})"
                    raise BackendConnectionError(message)  # noqa: TRY301
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            _schema.migrate(connection, self.path)
            file.note_files()
        except BaseException:
            connection.close()
            raise
        return connection

    def signal(self, topics: set[Topic]) -> None:
        """Wake the other processes that wait for one of the topics."""
        if self._wakeup_file is not None:
            self._wakeup_file.signal(topics)

    def expect(self, topic: Topic, task_id: str) -> None:
        """Signal a topic once a transaction of the user's has been committed."""
        if self._commits is not None:
            self._commits.expect(topic, task_id)

    def close(self) -> None:
        """Close all but the connections. Calling it twice is fine."""
        commits, self._commits = self._commits, None
        if commits is not None:
            commits.close()
        wakeup_file, self._wakeup_file = self._wakeup_file, None
        if wakeup_file is not None:
            wakeup_file.close()
