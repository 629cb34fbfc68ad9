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

from sitq.errors import BackendConnectionError, BackendFormatError

__all__ = ["MEMORY", "WAS_EMPTIED", "File"]

MEMORY: Final = ":memory:"
WAS_EMPTIED: Final = "was a store of sitq's and is empty now"


class File:
    """The file of a store, as it was when it was opened.

    Raises:
        BackendConnectionError: it is a symlink, not a plain file, writable by others, or cannot
            be made.
        BackendFormatError: it is empty, and was not.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._log: tuple[int, int] | None = None
        self._size = 0
        if path == MEMORY:
            self._identity = None
            return
        self._create()
        # Before the file: others make the bell once the store is complete.
        self.had_bell: Final = os.path.exists(self.bell)
        status = os.lstat(path)
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
        if not os.path.lexists(self.path):
            # The bell of a store that was removed would speak against the new, empty file.
            with suppress(OSError):
                os.unlink(self.bell)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            message = f"cannot create {self.path}: {error.strerror}; does its folder exist?"
            raise BackendConnectionError(message) from error

    def _check_safe(self, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            problem = "is a symbolic link; give the path of the file itself"
        elif not stat.S_ISREG(status.st_mode):
            problem = "is not a plain file"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = "can be written by other users; take that right away (chmod go-w)"
        else:
            return
        raise BackendConnectionError(f"{self.path} {problem}")

    def note_files(self) -> None:
        """Remember how long the file is, and its log: that stays the same one while it is open."""
        if self._identity is not None:
            self._size = _stat(self.path).st_size
            status = _stat(f"{self.path}-wal")
            self._log = (status.st_dev, status.st_ino)

    def forget_log(self) -> None:
        """Expect another log from now on, until `note_files`."""
        self._log = None

    def is_at(self, path: str) -> bool:
        """Tell if a path leads to this file."""
        with suppress(OSError):
            status = os.stat(path)
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def check_same(self) -> None:
        """Make sure that the paths still lead to the files that were opened.

        SQLite goes on with files that were removed, and with a file that was cut short as long
        as it remembers the pages; what it then acknowledged would be lost.

        Raises:
            BackendConnectionError: the file or its write-ahead log was removed or replaced.
            BackendFormatError: the file was cut short.
        """
        if self._identity is None:
            return
        status = _stat(self.path)
        if (status.st_dev, status.st_ino) != self._identity:
            raise BackendConnectionError(f"{self.path} was replaced by another file")
        if status.st_size < self._size:
            self._check_whole(status.st_size)
        self._size = status.st_size
        if self._log is not None:
            log = _stat(f"{self.path}-wal")
            if (log.st_dev, log.st_ino) != self._log:
                raise BackendConnectionError(f"{self.path}-wal was replaced by another file")

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
        return sqlite3.connect(
            f"file:{name.replace('#', '%23')}?mode={mode}",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        message = f"{path} has disappeared: {error.strerror}"
        raise BackendConnectionError(message) from error
