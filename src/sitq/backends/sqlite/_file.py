"""The database file: made private, checked before it is trusted, and never made over."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from typing import Final

from sitq.errors import BackendConnectionError, BackendFormatError

__all__ = ["MEMORY", "File"]

MEMORY: Final = ":memory:"
_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100


class File:
    """The file of a store, as it was when it was opened.

    Raises:
        BackendConnectionError: it is a symlink, not a plain file, writable by others, or cannot
            be made.
        BackendFormatError: it is no SQLite database, or was cut short.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        if path == MEMORY:
            self._identity = None
            return
        self._create()
        status = os.lstat(path)
        self._check_safe(status)
        self._check_format(status.st_size)
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

    def _check_format(self, size: int) -> None:
        if size == 0:
            if os.path.exists(self.bell):
                self._refuse("was a store of sitq's and is empty now")
            return
        with open(self.path, "rb") as file:
            header = file.read(_HEADER_BYTES)
        if not header.startswith(_MAGIC[: len(header)]) or len(header) < len(_MAGIC):
            self._refuse("is not an SQLite database")
        if len(header) < _HEADER_BYTES:
            self._refuse("was cut short")
        page_size = int.from_bytes(header[16:18], "big")
        pages = int.from_bytes(header[28:32], "big")
        whole = pages * (65536 if page_size == 1 else page_size)
        # Pages may still be in the write-ahead log; without one, the file must hold them all.
        if size < whole and not self._has_log():
            self._refuse(f"was cut short: {size} of {whole} bytes are there")

    def _has_log(self) -> bool:
        try:
            return os.stat(f"{self.path}-wal").st_size > 0
        except OSError:
            return False

    def _refuse(self, problem: str) -> None:
        raise BackendFormatError(f"{self.path} {problem}; it was left as it is")

    def check_same(self) -> None:
        """Make sure that the path still leads to the file that was opened.

        SQLite goes on with a file that was removed; what it then acknowledged would be lost.

        Raises:
            BackendConnectionError: it was removed or replaced.
        """
        if self._identity is None:
            return
        try:
            status = os.stat(self.path)
        except OSError as error:
            message = f"{self.path} has disappeared: {error.strerror}"
            raise BackendConnectionError(message) from error
        if (status.st_dev, status.st_ino) != self._identity:
            raise BackendConnectionError(f"{self.path} was replaced by another file")

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
