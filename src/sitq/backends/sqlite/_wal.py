"""The write-ahead log and its index, watched while a store is open.

SQLite goes on with a log that was cut or swapped under it. It then writes behind a gap, or into a
file that nobody else sees, and all that it acknowledges is unreadable later.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

from sitq.errors import BackendConnectionError

__all__ = ["WriteAheadLog", "set_aside", "stat_of"]

# The formats are at https://www.sqlite.org/walformat.html
_LOG_HEADER: Final = 32
_PAGE_HEADER: Final = 24
_PAGE_SIZE: Final = slice(14, 16)
_PAGES: Final = slice(16, 20)
_INDEX_HEADER: Final = 20
_LARGEST_PAGE: Final = 65536
_TRIES: Final = 5
_DESCRIPTORS: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"

_Identity = tuple[int, int]


class WriteAheadLog:
    """The ``-wal`` and ``-shm`` files of a database, as they were when it was opened.

    Args:
        database: the database's path. The process has a connection to it, and keeps one.

    Raises:
        BackendConnectionError: one of the files is not there.
    """

    def __init__(self, database: str) -> None:
        self._log: Final = f"{database}-wal"
        self._index: Final = f"{database}-shm"
        self._log_identity: Final = _identity(stat_of(self._log))
        index = stat_of(self._index)
        self._index_identity: Final = _identity(index)
        self._index_size = index.st_size
        self._harm = ""
        self._file = self._find()

    def check(self) -> None:
        """Make sure that both are the same files, and hold what SQLite takes them to hold.

        Raises:
            BackendConnectionError: one was removed, replaced or cut short.
        """
        if self._harm:  # SQLite may have written behind the gap meanwhile
            raise BackendConnectionError(self._harm)
        index = stat_of(self._index)
        if _identity(index) != self._index_identity:
            raise BackendConnectionError(f"{self._index} was replaced by another file")
        if index.st_size < self._index_size:
            self._refuse(self._index)
        self._index_size = index.st_size
        for _ in range(_TRIES):
            # In this order: SQLite writes to the log first, and then to its index.
            needed = self._needed()
            log = stat_of(self._log)
            if _identity(log) != self._log_identity:
                raise BackendConnectionError(f"{self._log} was replaced by another file")
            if log.st_size >= needed:
                return
            # It is shorter; or somebody has emptied it in order between the two looks, or the
            # descriptor is another file's by now.
            self._file = self._find()
        self._refuse(self._log)

    def remove(self) -> None:
        """Remove the two files, if the paths still lead to them.

        A log that could not be emptied into its database is kept under another name.
        """
        with suppress(OSError):
            log = os.lstat(self._log)
            if _identity(log) == self._log_identity:
                set_aside(self._log, log)
        with suppress(OSError):
            if _identity(os.lstat(self._index)) == self._index_identity:
                os.unlink(self._index)

    def _refuse(self, path: str) -> None:
        self._harm = (
            f"{path} was cut short while the store was open: "
            "end all processes that use it, then start them again"
        )
        raise BackendConnectionError(self._harm)

    def _needed(self) -> int:
        """Return how long the log has to be at least; 0 if the index cannot be read."""
        if self._file is None:
            return 0
        try:
            return _needed(os.pread(self._file, _INDEX_HEADER, 0))
        except OSError:
            self._file = self._find()
            return 0

    def _find(self) -> int | None:
        """Return the descriptor that SQLite itself has of the index.

        With one of our own, its closing would end all of SQLite's locks on the index.
        """
        with suppress(OSError):
            for name in os.listdir(_DESCRIPTORS):
                with suppress(OSError):
                    if _identity(os.fstat(int(name))) == self._index_identity:
                        return int(name)
        return None


def _needed(header: bytes) -> int:
    if len(header) < _INDEX_HEADER:
        return 0
    pages = int.from_bytes(header[_PAGES], sys.byteorder)
    size = int.from_bytes(header[_PAGE_SIZE], sys.byteorder)
    if pages == 0:
        return 0
    return _LOG_HEADER + pages * (_PAGE_HEADER + (_LARGEST_PAGE if size == 1 else size))


def _identity(status: os.stat_result) -> _Identity:
    return (status.st_dev, status.st_ino)


def set_aside(path: str, status: os.stat_result) -> None:
    """Remove a file that is beside a database; a log with something in it is kept as ``-left``.

    Raises:
        OSError: it cannot be done.
    """
    if path.endswith("-wal") and status.st_size:
        os.replace(path, f"{path}-left")
    else:
        os.unlink(path)


def stat_of(path: str, *, follow: bool = True) -> os.stat_result:
    """Return a file's status.

    Raises:
        BackendConnectionError: it is not there.
    """
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError as error:
        message = f"{path} has disappeared: {error.strerror}"
        raise BackendConnectionError(message) from error
