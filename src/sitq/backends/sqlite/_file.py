"""The database file: made private, checked before it is trusted, and never made over.

An existing file is opened by SQLite only. When a process closes a descriptor of its own, all its
POSIX locks on that file end, also those of SQLite's: another process could then take itself for
the last user and remove the write-ahead log that is in use.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, suppress
from typing import Final

from sitq.backends.sqlite._wal import WriteAheadLog, set_aside, stat_of
from sitq.errors import BackendConnectionError, BackendFormatError

__all__ = ["MEMORY", "WAS_EMPTIED", "File", "is_foreign"]

MEMORY: Final = ":memory:"
# The log grows while a reader keeps SQLite from beginning it anew; afterwards it is cut to this.
LOG_LIMIT: Final = 16 * 1024 * 1024
WAS_EMPTIED: Final = "was a store of sitq's and is empty now"


class File:
    """The file of a store, as it was when it was opened.

    Args:
        path: its path.
        create: whether to make it if it is not there.

    Raises:
        BackendConnectionError: it is a symlink, not a plain file, another user's, writable by
            others or has a second name, or it cannot be made.
        BackendFormatError: it is empty, and was not.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path: Final = path
        self._log: WriteAheadLog | None = None
        self._size = 0
        if path == MEMORY:
            self._identity = None
            return
        if create:
            self._create()
        # Before the file: others make the bell once the store is complete.
        self.had_bell: Final = os.path.exists(self.bell)
        status = stat_of(path, follow=False)
        self._check_safe(status)
        if self.had_bell and status.st_size == 0:
            # Not for SQLite to see: it removes the log of an empty file.
            raise BackendFormatError(f"{path} {WAS_EMPTIED}; it was left as it is")
        self._identity = (status.st_dev, status.st_ino)

    @property
    def bell(self) -> str:
        """The file beside it that is touched when something has changed."""
        return f"{self.path}-bell"

    def _create(self) -> None:
        left = self._left()
        if not os.path.lexists(self.path):
            # The bell of a store that was removed would speak against the new, empty file, and
            # SQLite would take the log and the index of the old one for those of the new one.
            for path, identity in left:
                with suppress(OSError):
                    status = os.lstat(path)
                    if (status.st_dev, status.st_ino) == identity:
                        set_aside(path, status)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            message = f"cannot create {self.path}: {error.strerror}; does its folder exist?"
            raise BackendConnectionError(message) from error

    def _left(self) -> list[tuple[str, tuple[int, int]]]:
        """Return the files that are beside the path."""
        left = []
        for path in (self.bell, f"{self.path}-wal", f"{self.path}-shm"):
            with suppress(OSError):
                status = os.lstat(path)
                left.append((path, (status.st_dev, status.st_ino)))
        return left

    def _check_safe(self, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            problem = "is a symbolic link; give the path of the file itself"
        elif not stat.S_ISREG(status.st_mode):
            problem = "is not a plain file"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = "can be written by other users; take that right away (chmod go-w)"
        elif is_foreign(status):
            problem = f"belongs to another user (uid {status.st_uid}); run this as its owner"
        elif status.st_nlink > 1:
            # Each name would have a log of its own, and neither would see the other's tasks.
            problem = "has another name (a hard link); remove all names but one"
        else:
            return
        raise BackendConnectionError(f"{self.path} {problem}")

    def note_files(self) -> None:
        """Remember the files beside it: they stay the same ones while it is open."""
        if self._identity is not None:
            self._size = stat_of(self.path).st_size
            self._log = WriteAheadLog(self.path)

    def forget_files(self) -> None:
        """Expect other files beside it from now on, until `note_files`."""
        self._log = None

    def is_at(self, path: str) -> bool:
        """Tell if a path leads to this file."""
        with suppress(OSError):
            status = os.stat(path)
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def is_replaced(self) -> bool:
        """Return whether another file has been put in its place."""
        return (
            self._identity is not None and os.path.exists(self.path) and not self.is_at(self.path)
        )

    def remove_log(self) -> None:
        """Remove its log and index, if another file has been put in the place of this one.

        SQLite leaves them when it closes such a file, and would take them for those of the other.
        """
        log, self._log = self._log, None
        if log is None:
            return
        import fcntl  # not on Windows, where nobody can replace a file that is open

        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # One process at a time, or this could be the log that another has begun meanwhile.
            fcntl.flock(folder, fcntl.LOCK_EX)
            log.remove()
        finally:
            os.close(folder)

    def check_same(self) -> None:
        """Make sure that the paths still lead to the files that were opened.

        SQLite goes on with files that were removed, and with a file that was cut short as long
        as it remembers the pages; what it then acknowledged would be lost.

        Raises:
            BackendConnectionError: the file, its write-ahead log or its index was removed or
                replaced, or one of the latter was cut short.
            BackendFormatError: the file was cut short.
        """
        if self._identity is None:
            return
        status = stat_of(self.path)
        if (status.st_dev, status.st_ino) != self._identity:
            raise BackendConnectionError(f"{self.path} was replaced by another file")
        if status.st_size < self._size:
            self._check_whole(status.st_size)
        self._size = status.st_size
        if self._log is not None:
            self._log.check()

    def _check_whole(self, size: int) -> None:
        """Tell a file that was cut short from one that somebody has vacuumed."""
        if size == 0:
            raise BackendFormatError(f"{self.path} {WAS_EMPTIED}")
        try:
            with closing(self.connect(read_only=True)) as connection:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # busy, say: it is asked again
            found = str(error)
        if found != "ok":
            message = f"{self.path} was cut short while it was open: {found}"
            raise BackendFormatError(message)

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        """Open a connection in autocommit mode that never waits by itself."""
        if self.path == MEMORY:
            return sqlite3.connect(MEMORY, isolation_level=None, check_same_thread=False)
        name = os.path.abspath(self.path).replace("%", "%25").replace("?", "%3f")
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"file:{name.replace('#', '%23')}?mode={mode}",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Whoever begins the log anew makes it shorter, if it has grown behind a long reader.
            connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
        except BaseException:
            connection.close()
            raise
        return connection

    def log_is_long(self) -> bool:
        """Return whether the log is longer than it has to be, if no long reader is in the way."""
        with suppress(OSError):
            return self._identity is not None and os.stat(f"{self.path}-wal").st_size > LOG_LIMIT
        return False


def is_foreign(status: os.stat_result) -> bool:
    """Return whether a file belongs to another user than this process."""
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()
