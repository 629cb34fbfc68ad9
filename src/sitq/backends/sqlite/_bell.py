"""The bell: how processes that share a file wake each other after a commit.

A mark written to a small file beside the database means new work, a touch of its times means
new results, an opening and closing means that a running task is to end. inotify turns each into
a file descriptor that either event loop can wait for.
Watching the database's own files would ring too early: pages are written before the commit can
be seen.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

from sitq.backends.sqlite._file import is_foreign

if TYPE_CHECKING:
    import ctypes

    from sitq.protocols import Topic

__all__ = ["Bell", "Watch"]

# Event bits of inotify(7).
_IN_MODIFY: Final = 0x2
_IN_ATTRIB: Final = 0x4
_IN_CLOSE_WRITE: Final = 0x8
_EVENTS: Final[dict[Topic, int]] = {
    "tasks": _IN_MODIFY,
    "results": _IN_ATTRIB,
    "cancels": _IN_CLOSE_WRITE,
}
_DONT_FOLLOW: Final = 0x02000000
_READ: Final = 4096
_MARK_BYTES: Final = 8
_CAN_WATCH: Final = sys.platform == "linux"


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _open(path: str, flags: int) -> int:
    """Open a wake-up file, and nothing else that may have been put in its place.

    Opening a named pipe would block, and a link leads to a file of somebody's.

    Raises:
        OSError: it cannot be opened, or is none of ours.
    """
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or is_foreign(status):
            message = f"{path} is not a plain file of this user's with one name"
            raise OSError(errno.EPERM, message)  # noqa: TRY301
    except BaseException:
        os.close(file)
        raise
    return file


class Bell:
    """The bell of one store; ringing it never raises.

    Its mark tells who rang last, so that nobody has to be woken by a bell of their own.

    Raises:
        OSError: the file cannot be opened, or is not one that is safe to write to.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.mark: Final = os.urandom(_MARK_BYTES)
        self._file: int | None = None
        self._file = _open(path, os.O_CREAT | os.O_RDWR)

    def __del__(self) -> None:
        """Close the file of a bell that nobody has closed."""
        self.close()

    def ring(self, topics: set[Topic]) -> None:
        """Wake those that watch one of the topics."""
        if self._file is None:
            return
        with suppress(OSError):  # a bell that cannot ring leaves the fallback
            if "tasks" in topics:
                os.pwrite(self._file, self.mark, 0)
            if "results" in topics:
                os.utime(self._file)
            if "cancels" in topics:
                os.close(_open(self.path, os.O_WRONLY))

    def close(self) -> None:
        """Give the file up. Calling it twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class Watch:
    """One watcher of a bell's topic.

    Raises:
        OSError: files cannot be watched here.
    """

    def __init__(self, path: str, topic: Topic) -> None:
        self._file: int | None = None
        self._bell: int | None = None
        if not _CAN_WATCH:
            raise OSError("this platform has no inotify")
        import ctypes

        libc = _libc()
        file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if file < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._file = file
        try:
            self._bell = _open(path, os.O_RDONLY)
            if libc.inotify_add_watch(file, os.fsencode(path), _EVENTS[topic] | _DONT_FOLLOW) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", path)  # noqa: TRY301
        except OSError:
            self.close()
            raise

    def __del__(self) -> None:
        """Close the files of a watcher that nobody has closed."""
        self.close()

    def fileno(self) -> int:
        """The file to wait for: it can be read once the bell has rung."""
        if self._file is None:
            raise ValueError("the watcher is closed")
        return self._file

    def close(self) -> None:
        """Stop watching. Calling it twice is fine.

        It takes milliseconds: the kernel waits until nobody can be about to report an event.
        """
        files, self._file, self._bell = (self._file, self._bell), None, None
        for file in files:
            if file is not None:
                os.close(file)

    def forget(self) -> None:
        """Take no notice of what has rung so far.

        Of more rings than one read takes, what is left is heard as another one.
        """
        if self._file is not None:
            with suppress(BlockingIOError):
                os.read(self._file, _READ)

    def mark(self) -> bytes:
        """Whose bell it was that rang last for new work; empty if that cannot be told."""
        if self._bell is not None:
            with suppress(OSError):
                return os.pread(self._bell, _MARK_BYTES, 0)
        return b""
