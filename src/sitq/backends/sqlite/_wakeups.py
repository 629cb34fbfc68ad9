"""Wake-ups: how processes that share a file tell each other of a commit, and who waits for it.

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
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq.backends.sqlite._file import is_foreign
from sitq.errors import SitqError

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.protocols import Listener, Topic

__all__ = ["FileListeners", "InotifyWatch", "WakeupFile"]

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


class WakeupFile:
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

    def signal(self, topics: set[Topic]) -> None:
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


class InotifyWatch:
    """One watcher of a bell's topic.

    Raises:
        OSError: files cannot be watched here.
    """

    def __init__(self, path: str, topic: Topic) -> None:
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
        files, self._file, self._wakeup_file = (self._file, self._wakeup_file), None, None
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
        if self._wakeup_file is not None:
            with suppress(OSError):
                return os.pread(self._wakeup_file, _MARK_BYTES, 0)
        return b""


# How often to look at a file that cannot be watched, in seconds.
_LOOK_EVERY = 0.05
# For so many seconds after the last listener a bell may ring in vain: to have the loop watch it
# anew for each result takes longer.
_LINGER = 1.0


class _Subscription:
    """Hears what is told; where nobody else's bell can be heard, `look` tells of the others."""

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
        """Tell if others have changed the store; the first look cannot tell, so it says yes."""
        try:
            version = await look()
        except SitqError:  # a store in trouble has not changed
            return False
        before, self._version = self._version, version
        return version != before


class FileListeners:
    """All that listen to one open store.

    They hear of the commits of this instance at once, and of all others by the bell.

    Args:
        loop: the loop that they run in.
        waker: reaches it from the database threads.
        wakeup_file: the bell's path; ``None``: nobody else can change the store.
        look: the version of the store, which changes with the commits of others.
        prompt: called when others have stored tasks; returns those who need not hear of it.
    """

    def __init__(
        self,
        loop: LoopRef,
        waker: LoopWaker,
        wakeup_file: str | None,
        look: Callable[[], Awaitable[int]],
        prompt: Callable[[], Collection[Listener]],
    ) -> None:
        self._loop = loop
        self._waker = waker
        self._wakeup_file = wakeup_file
        self._look = look
        self._prompt = prompt
        self._mark: bytes | None = None
        self._lock = threading.Lock()
        self._kept: dict[Topic, InotifyWatch] = {}
        self._watching: dict[Topic, Callable[[], object]] = {}
        self._left_at: dict[Topic, float] = {}
        self._ending = False
        self._closed = False
        self._subscriptions: dict[Topic, set[_Subscription]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }

    def know(self, mark: bytes) -> None:
        """Take no notice of new work under this mark: `notify` tells of it."""
        self._mark = mark

    def are_for(self, topic: Topic) -> bool:
        """Tell if anybody listens to a topic; from any thread."""
        return bool(self._subscriptions[topic])

    def notify(self, topics: set[Topic]) -> None:
        """Tell of a commit of this instance, after its bell has rung; from any thread."""
        for topic in topics:
            if self._subscriptions[topic]:
                self._waker.post(lambda: self._signal(topics))
                return

    def _signal(self, topics: Iterable[Topic], told: Collection[Listener] = ()) -> None:
        for topic in topics:
            for subscription in self._subscriptions[topic]:
                if subscription not in told:
                    subscription.signal()

    @contextmanager
    def listen(self, topic: Topic) -> Iterator[Listener]:
        """Listen from now on."""
        subscriptions = self._subscriptions[topic]
        if not subscriptions and topic not in self._watching:
            self._watch(topic)
        is_deaf = self._wakeup_file is not None and topic not in self._watching
        subscription = _Subscription(self._look if is_deaf else None)
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
        """Have the bell heard, where it can be."""
        if self._wakeup_file is None:
            return
        with self._lock:
            watch = self._kept.pop(topic, None)
        if watch is not None:
            watch.forget()
        else:
            try:
                watch = InotifyWatch(self._wakeup_file, topic)
            except OSError:  # no inotify, or none left of what the system allows
                return
        stop = self._loop.when_readable(watch.fileno(), partial(self._hear, topic, watch))
        self._watching[topic] = partial(self._stop, topic, watch, stop)

    def _hear(self, topic: Topic, watch: InotifyWatch) -> None:
        watch.forget()
        if not self._subscriptions[topic]:
            if time.monotonic() - self._left_at[topic] > _LINGER:
                self._unwatch(topic)
            return
        # Whoever rang before this instance did is heard with it: `notify` comes after the bell.
        if topic != "tasks":
            self._signal((topic,))
        elif watch.mark() != self._mark:
            self._signal((topic,), told=self._prompt())

    def watch_anew(self) -> None:
        """Watch the bell that is there now, and have everybody look; from within."""
        watched = list(self._watching)
        for topic in watched:
            self._unwatch(topic)
        self._give_up_kept()
        for topic in watched:
            if self._subscriptions[topic]:
                self._watch(topic)
        self._signal(self._subscriptions)

    def _give_up_kept(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        for watch in kept.values():
            watch.close()

    def _unwatch(self, topic: Topic) -> None:
        stop = self._watching.pop(topic, None)
        if stop is not None:
            stop()

    def end(self) -> None:
        """Have the loop watch no longer what nobody listens for; from within, before the close."""
        self._ending = True
        for topic in list(self._watching):
            if not self._subscriptions[topic]:
                self._unwatch(topic)

    def _stop(self, topic: Topic, watch: InotifyWatch, stop: Callable[[], object]) -> None:
        """Keep a watcher for the next who listens: one that is closed takes long to end."""
        stop()
        with self._lock:
            if not self._closed and topic not in self._kept:
                self._kept[topic] = watch
                return
        watch.close()

    def close(self) -> None:
        """Keep no watchers any more; from any thread."""
        with self._lock:
            self._closed = True
        self._give_up_kept()
