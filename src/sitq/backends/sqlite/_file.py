"""The files of a SQLite store: the database, its write-ahead log and the log's index.

They are created private to the user, and checked before each transaction. SQLite does not notice
that its log was cut short or replaced: it goes on writing behind a gap, or into a file that no
other process sees, and what it acknowledges is lost.

Only SQLite opens an existing database file. When a process closes any descriptor of a file, all
its POSIX locks on that file end, those of SQLite too. Another process could then take itself for
the last user and remove the log that is in use.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from contextlib import closing, suppress
from typing import Final

from sitq.errors import BackendConnectionError, BackendFormatError

__all__ = [
    "MEMORY",
    "WAS_EMPTIED",
    "DatabaseFile",
    "identity_of",
    "is_at",
    "is_foreign",
]

MEMORY: Final = ":memory:"
WAS_EMPTIED: Final = "was a store of sitq's and is empty now"
# The log grows while a reader keeps SQLite from resetting it; afterwards it is cut to this length.
LOG_LIMIT: Final = 16 * 1024 * 1024

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


def identity_of(status: os.stat_result) -> _Identity:
    """Return the device and the number of a file, which no other file has."""
    return (status.st_dev, status.st_ino)


def is_at(path: str, identity: _Identity | None) -> bool:
    """Return whether a path, which is not followed if it is a link, leads to a file."""
    with suppress(OSError):
        return identity_of(os.lstat(path)) == identity
    return False


def is_foreign(status: os.stat_result) -> bool:
    """Return whether a file belongs to another user than this process."""
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()


def _stat(path: str, *, follow: bool = True) -> os.stat_result:
    """Return a file's status."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError as error:
        message = f"{path} has disappeared: {error.strerror}"
        raise BackendConnectionError(message) from error


def _remove(path: str, identity: _Identity) -> None:
    """Remove a file beside a database, if it is still the same; raises nothing.

    A write-ahead log with something in it is kept as ``-left``.
    """
    with suppress(OSError):
        status = os.lstat(path)
        if identity_of(status) != identity:
            return
        if path.endswith("-wal") and status.st_size:
            os.replace(path, f"{path}-left")
        else:
            os.unlink(path)


class WriteAheadLog:
    """The ``-wal`` and ``-shm`` files of a database, as they were when it was opened.

    Args:
        database: the database's path. The process keeps a connection to it open.
    """

    def __init__(self, database: str) -> None:
        self._log: Final = f"{database}-wal"
        self._index: Final = f"{database}-shm"
        self._log_identity: Final = identity_of(_stat(self._log))
        index = _stat(self._index)
        self._index_identity: Final = identity_of(index)
        self._index_size = index.st_size
        self._harm = ""
        self._file = self._find()

    def check(self) -> None:
        """Check that both are still the same files, and as long as SQLite takes them to be."""
        if self._harm:  # SQLite may have written behind the gap meanwhile
            raise BackendConnectionError(self._harm)
        index = _stat(self._index)
        if identity_of(index) != self._index_identity:
            raise BackendConnectionError(f"{self._index} was replaced by another file")
        if index.st_size < self._index_size:
            self._refuse(self._index)
        self._index_size = index.st_size
        for _ in range(_TRIES):
            # The index is read first: SQLite writes to the log before it writes to the index.
            needed = self._needed()
            log = _stat(self._log)
            if identity_of(log) != self._log_identity:
                raise BackendConnectionError(f"{self._log} was replaced by another file")
            if log.st_size >= needed:
                return
            # It is shorter. Or another process has reset it between the two reads, or the
            # descriptor now belongs to another file.
            self._file = self._find()
        self._refuse(self._log)

    def remove(self) -> None:
        """Remove the two files, if the paths still lead to them.

        A log that could not be emptied into its database is kept under another name.
        """
        _remove(self._log, self._log_identity)
        _remove(self._index, self._index_identity)

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
                    if identity_of(os.fstat(int(name))) == self._index_identity:
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


class DatabaseFile:
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
        # Checked before the database file: others create it once the store is complete.
        self.had_wakeup_file: Final = os.path.exists(self.wakeup_file)
        status = _stat(path, follow=False)
        self._check_safe(status)
        if self.had_wakeup_file and status.st_size == 0:
            # SQLite must not open it: it removes the log of an empty file.
            raise BackendFormatError(f"{path} {WAS_EMPTIED}; it was left as it is")
        self._identity = identity_of(status)

    @property
    def wakeup_file(self) -> str:
        """Return the path of the wake-up file; see `sitq.backends.sqlite._wakeups`."""
        return f"{self.path}-bell"

    def _create(self) -> None:
        left = self._left()
        if not os.path.lexists(self.path):
            # The files of a store that was removed. With its wake-up file, the new, empty file
            # would be refused, and SQLite would use the old log and index for the new file.
            for path, identity in left:
                _remove(path, identity)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            message = f"cannot create {self.path}: {error.strerror}; does its folder exist?"
            raise BackendConnectionError(message) from error

    def _left(self) -> list[tuple[str, _Identity]]:
        """Return the store's other files that exist, with their identities."""
        left = []
        for path in (self.wakeup_file, f"{self.path}-wal", f"{self.path}-shm"):
            with suppress(OSError):
                left.append((path, identity_of(os.lstat(path))))
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
            # SQLite would use one log a name, and neither would see the other's tasks.
            problem = "has another name (a hard link); remove all names but one"
        else:
            return
        raise BackendConnectionError(f"{self.path} {problem}")

    def note_files(self) -> None:
        """Store the identity of the log and the index, for `check_same`."""
        if self._identity is not None:
            self._size = _stat(self.path).st_size
            self._log = WriteAheadLog(self.path)

    def forget_files(self) -> None:
        """Stop checking the log and the index, until `note_files`."""
        self._log = None

    def is_at(self, path: str) -> bool:
        """Return whether a path leads to this file."""
        with suppress(OSError):
            return identity_of(os.stat(path)) == self._identity
        return False

    def is_replaced(self) -> bool:
        """Return whether another file has been put in its place."""
        return (
            self._identity is not None and os.path.exists(self.path) and not self.is_at(self.path)
        )

    def remove_log(self) -> None:
        """Remove the log and the index after another file has replaced the database.

        SQLite leaves them when it closes such a file, and would use them for the new one.
        """
        log, self._log = self._log, None
        if log is None:
            return
        import fcntl  # not on Windows, where an open file cannot be replaced

        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # One process at a time: another one may begin a new log meanwhile.
            fcntl.flock(folder, fcntl.LOCK_EX)
            log.remove()
        finally:
            os.close(folder)

    def check_same(self) -> None:
        """Check that the paths still lead to the files that were opened.

        SQLite goes on using files that were removed, and a file that was cut short as long as
        the pages are in its cache. What it then acknowledges is lost.

        Raises:
            BackendConnectionError: the file, its write-ahead log or its index was removed or
                replaced, or one of the latter was cut short.
            BackendFormatError: the file was cut short.
        """
        if self._identity is None:
            return
        status = _stat(self.path)
        if identity_of(status) != self._identity:
            raise BackendConnectionError(f"{self.path} was replaced by another file")
        if status.st_size < self._size:
            self._check_whole(status.st_size)
        self._size = status.st_size
        if self._log is not None:
            self._log.check()

    def _check_whole(self, size: int) -> None:
        """Check that a shorter file was vacuumed by another process, and not cut short."""
        if size == 0:
            raise BackendFormatError(f"{self.path} {WAS_EMPTIED}")
        try:
            with closing(self.connect(read_only=True)) as connection:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # such as busy: the caller tries again
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
            # A log that has grown behind a long reader is truncated when it is reset.
            connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
        except BaseException:
            connection.close()
            raise
        return connection

    def log_is_long(self) -> bool:
        """Return whether the log is longer than `LOG_LIMIT`."""
        with suppress(OSError):
            return self._identity is not None and os.stat(f"{self.path}-wal").st_size > LOG_LIMIT
        return False
