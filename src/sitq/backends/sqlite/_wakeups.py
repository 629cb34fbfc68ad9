"""Wake-ups: processes that share a database file signal their commits to each other.

A small file beside the database, the wake-up file, carries the signals. A write of a mark means
new tasks, a change of its times means new results, opening and closing it means that a running
task is to be cancelled. inotify makes each a file descriptor that an event loop can wait for.

The database's own files cannot be watched instead: SQLite writes pages before a commit is visible.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq.backends.sqlite._file import identity_of, is_at, is_foreign
from sitq.errors import SitqError

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.protocols import Listener, Topic

__all__ = ["MARK_BYTES", "FileListeners", "InotifyWatch", "WakeupFile"]

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
MARK_BYTES: Final = 8
_CAN_WATCH: Final = sys.platform == "linux"


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _open(path: str, flags: int) -> int:
    """Open a wake-up file; refuse anything else at its path.

    Opening a named pipe would block, and a link may lead to a file of another program.
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


class WakeupFile:
    """The wake-up file of one store, for those that signal.

    Args:
        path: its path.
        mark: what a signal for new tasks writes: 8 bytes, by which an instance knows its own.
    """

    def __init__(self, path: str, mark: bytes = bytes(MARK_BYTES)) -> None:
        self.path: Final = path
        self._mark: Final = mark
        self._file: int | None = None
        self._file = _open(path, os.O_CREAT | os.O_RDWR)
        self._identity: Final = identity_of(os.fstat(self._file))

    def __del__(self) -> None:
        """Close the file if that was forgotten."""
        self.close()

    def is_current(self) -> bool:
        """Return whether the file is still at its path."""
        return is_at(self.path, self._identity)

    def release(self) -> None:
        """Wake all that still watch this file, after another one was made at its path; close it."""
        self.signal({"tasks", "results"})
        self.close()  # which signals "cancels"

    def signal(self, topics: set[Topic]) -> None:
        """Wake those that watch one of the topics; raises nothing."""
        if self._file is None:
            return
        with suppress(OSError):  # others then find the changes by polling
            if "tasks" in topics:
                os.pwrite(self._file, self._mark, 0)
            if "results" in topics:
                os.utime(self._file)
            if "cancels" in topics:
                os.close(_open(self.path, os.O_WRONLY))

    def close(self) -> None:
        """Close the file. Calling it twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class InotifyWatch:
    """An inotify watch of one topic of a wake-up file."""

    def __init__(self, path: str, topic: Topic) -> None:
        self._path: Final = path
        self._identity = (0, 0)
        self._file: int | None = None
        self._wakeup_file: int | None = None
        if not _CAN_WATCH:
            raise OSError("this platform has no inotify")
        import ctypes

        libc = _libc()
        file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if file < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._file = file
        try:
            self._wakeup_file = _open(path, os.O_RDONLY)
            self._identity = identity_of(os.fstat(self._wakeup_file))
            if libc.inotify_add_watch(file, os.fsencode(path), _EVENTS[topic] | _DONT_FOLLOW) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", path)  # noqa: TRY301
        except OSError:
            self.close()
            raise

    def __del__(self) -> None:
        """Close the files if that was forgotten."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for: it is readable once there was a signal."""
        if self._file is None:
            raise ValueError("the watch is closed")
        return self._file

    def close(self) -> None:
        """Stop watching. Calling it twice is fine.

        It takes milliseconds: the kernel waits until no event can be under way.
        """
        files, self._file, self._wakeup_file = (self._file, self._wakeup_file), None, None
        for file in files:
            if file is not None:
                os.close(file)

    def is_current(self) -> bool:
        """Return whether the watched file is still at its path."""
        return is_at(self._path, self._identity)

    def forget(self) -> None:
        """Discard the signals so far.

        If there are more than one read takes, the rest counts as another signal.
        """
        if self._file is not None:
            with suppress(BlockingIOError):
                os.read(self._file, _READ)

    def mark(self) -> bytes:
        """Return the mark of the last signal for new tasks; empty if it cannot be read."""
        if self._wakeup_file is not None:
            with suppress(OSError):
                return os.pread(self._wakeup_file, MARK_BYTES, 0)
        return b""


# Seconds between two looks at a store whose wake-up file cannot be watched.
_LOOK_EVERY = 0.05
# Seconds for which a watch is kept after its last listener has gone: to start one for each result
# takes longer than a few unneeded signals.
_LINGER = 1.0


class _Subscription:
    """One listener. If ``look`` is given, the wake-up file cannot be watched, and it polls."""

    def __init__(self, look: Callable[[], Awaitable[int]] | None) -> None:
        self._look = look
        self._changed = anyio.Event()
        self._version: int | None = None

    def signal(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        look = self._look
        if look is None:
            await self._changed.wait()
        else:
            while not (self._changed.is_set() or await self._differs(look)):
                with anyio.move_on_after(_LOOK_EVERY):
                    await self._changed.wait()
        self._changed = anyio.Event()

    async def _differs(self, look: Callable[[], Awaitable[int]]) -> bool:
        """Return whether others may have changed the store; the first look returns true."""
        try:
            version = await look()
        except SitqError:  # the store is unavailable: nothing has changed
            return False
        before, self._version = self._version, version
        return version != before


class FileListeners:
    """The listeners of one open store.

    They are woken by the commits of this instance directly, and by those of others through the
    wake-up file.

    Args:
        loop: the event loop of the listeners.
        waker: calls functions in that loop from the database threads.
        wakeup_file: the path of the wake-up file; ``None``: no other process can change the store.
        mark: the mark of this instance's signals; `notify` wakes its listeners.
    """

    def __init__(
        self,
        loop: LoopRef,
        waker: LoopWaker,
        wakeup_file: str | None,
        mark: bytes,
    ) -> None:
        self._loop = loop
        self._waker = waker
        self._wakeup_file = wakeup_file
        self._mark = mark
        self._lock = threading.Lock()
        # Kept for the next listener, since closing one takes long; the loop waits for some of them.
        self._watches: dict[Topic, InotifyWatch] = {}
        self._watching: dict[Topic, Callable[[], object]] = {}
        self._left_at: dict[Topic, float] = {}
        self._ending = False
        self._closed = False
        self._subscriptions: dict[Topic, set[_Subscription]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }

    def are_for(self, topic: Topic) -> bool:
        """Return whether a topic has listeners; from any thread."""
        return bool(self._subscriptions[topic])

    def notify(self, topics: set[Topic]) -> None:
        """Wake the listeners after a commit of this instance was signalled; from any thread."""
        for topic in topics:
            if self._subscriptions[topic]:
                self._waker.post(lambda: self._signal(topics))
                return

    def _signal(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            for subscription in self._subscriptions[topic]:
                subscription.signal()

    @contextmanager
    def listen(self, topic: Topic, look: Callable[[], Awaitable[int]]) -> Iterator[Listener]:
        """Listen from now on.

        Args:
            topic: what for.
            look: returns the version of the store, which changes with the commits of others. It
                is used where the wake-up file cannot be watched.
        """
        subscriptions = self._subscriptions[topic]
        if not subscriptions and topic not in self._watching:
            self._watch(topic)
        has_to_poll = self._wakeup_file is not None and topic not in self._watching
        subscription = _Subscription(look if has_to_poll else None)
        subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            subscriptions.discard(subscription)
            if not subscriptions:
                self._left_at[topic] = time.monotonic()
                if self._ending:
                    self._unwatch(topic)

    def _watch(self, topic: Topic) -> None:
        """Watch the wake-up file for a topic, if that is possible."""
        if self._wakeup_file is None:
            return
        with self._lock:
            watch = self._watches.get(topic)
            if watch is None:
                try:
                    watch = self._watches[topic] = InotifyWatch(self._wakeup_file, topic)
                except OSError:  # no inotify, or its limits are used up
                    return
            watch.forget()
            self._watching[topic] = self._loop.when_readable(
                watch.fileno(), partial(self._on_signal, topic, watch)
            )

    def _on_signal(self, topic: Topic, watch: InotifyWatch) -> None:
        watch.forget()
        if not self._subscriptions[topic]:
            if time.monotonic() - self._left_at[topic] > _LINGER:
                self._unwatch(topic)
            return
        if not watch.is_current():
            self.watch_anew()
            return
        # A signal before this instance's own is not lost: `notify` comes after the own signal.
        if topic != "tasks" or watch.mark() != self._mark:
            self._signal((topic,))

    def watch_anew_soon(self) -> None:
        """Have the loop call `watch_anew`; from any thread."""
        self._waker.post(self.watch_anew)

    def watch_anew(self) -> None:
        """Watch the wake-up file that is there now, and wake all listeners; in the loop."""
        watched = list(self._watching)
        for topic in watched:
            self._unwatch(topic)
        self._close_idle()
        for topic in watched:
            if self._subscriptions[topic]:
                self._watch(topic)
        self._signal(self._subscriptions)

    def _unwatch(self, topic: Topic) -> None:
        with self._lock:
            if topic in self._watching:
                self._watching.pop(topic)()
        if self._closed:
            self._close_idle()

    def end(self) -> None:
        """Stop the watches that have no listeners; in the loop, before `close`."""
        self._ending = True
        for topic in list(self._watching):
            if not self._subscriptions[topic]:
                self._unwatch(topic)

    def _close_idle(self) -> None:
        with self._lock:
            idle = self._watches.keys() - self._watching.keys()
            watches = [self._watches.pop(topic) for topic in idle]
        for watch in watches:
            watch.close()

    def close(self) -> None:
        """Close all watches that are not in use; from any thread."""
        self._closed = True
        self._close_idle()
