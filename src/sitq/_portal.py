"""`Portal`: threads without an event loop wait for coroutines on a loop in a thread of its own.

An exception from a signal handler in a waiting thread leaves nothing locked and nothing half done:
each step can be repeated, and a call that has begun on the loop goes on without the thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from sitq._loops import LoopThread, in_event_loop
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

__all__ = ["Portal", "PortalClient", "refuse_event_loop"]

T = TypeVar("T")

# An interrupt just before a wait does not end it: the longest time until it is noticed; seconds.
_TURN: Final = 1.0
# How long a queue that opens waits for queues that were dropped to close; seconds.
_DROPPED: Final = 5.0
_CLOSED: Final = "the queue was closed during this call, which may have been carried out"

# The loops that end because their queues have been collected as garbage.
_dropped: Final[set[LoopThread]] = set()


class _Call(Generic[T]):
    """A coroutine on the loop, for which other threads wait.

    They wait for a bare lock. A condition variable, and so a future of `concurrent.futures`, may
    be left locked by an interrupt, and the loop would wait for it for ever.

    Args:
        work: makes the coroutine.
        calls: the calls that run, for the loop's thread.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]], calls: set[_Call[Any]]) -> None:
        self._work: Final = work
        self._calls: Final = calls
        self._runs: Final = threading.Lock()
        self._runs.acquire()
        self._is_cancelled = False
        self._thread: LoopThread | None = None
        self.task: asyncio.Task[T] | None = None

    @property
    def is_done(self) -> bool:
        """Return whether there is a result."""
        return self.task is not None and self.task.done()

    def begin_on(self, thread: LoopThread) -> None:
        """Start it, unless it has started."""
        thread.start()
        self._thread = thread
        thread.call_soon(self._begin)

    def _begin(self) -> None:
        if self.task is None and not self._is_cancelled:
            self._calls.add(self)
            self.task = asyncio.get_running_loop().create_task(self._work())
            self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        self._calls.discard(self)
        if not task.cancelled():
            task.exception()  # or asyncio logs that it was never retrieved
        self._runs.release()

    def wait(self) -> None:
        """Wait until there is a result, or until there can be none."""
        thread = self._thread
        while not self.is_done:
            if self._runs.acquire(timeout=_TURN):
                self._runs.release()
            elif thread is None or not thread.is_alive:
                return

    def result(self) -> T:
        """Return what the coroutine returned.

        Raises:
            UsageError: it was cancelled, or never began.
        """
        if self.task is None or not self.is_done:
            raise UsageError(_CLOSED)
        try:
            return self.task.result()
        except asyncio.CancelledError:
            raise UsageError(_CLOSED) from None

    def cancel(self) -> None:
        """Request its cancellation."""
        if self._thread is not None and not self.is_done:
            self._thread.call_soon(self._cancel)

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()


class Portal:
    """Runs coroutines on a loop in a thread, and has the callers wait for them.

    A portal that is collected as garbage closes by itself, without waiting for that.

    Args:
        last: runs before the loop ends; it must not refer to the portal.
        owner: the name of the class that the calls are made of, for the texts of errors.
    """

    def __init__(
        self, last: Callable[[], Coroutine[Any, Any, None]], owner: str = "SyncTaskQueue"
    ) -> None:
        self._last: Final = last
        self._owner: Final = owner
        # Reentrant: a garbage collection while it is held may use the queue.
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._closing: _Call[None] | None = None
        self._calls: Final[set[_Call[Any]]] = set()
        self._pid = os.getpid()
        self._closed = False
        # Whether the store is open.
        self.is_connected: bool = False

    # A default, since the names of the module may be gone at the interpreter's exit.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Close a portal that was not closed before it became garbage."""
        if is_finalizing():
            return
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and self._pid == os.getpid() and thread.is_alive:
            _dropped.add(thread)
            self._new_closing(thread).begin_on(thread)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], *, reopen: bool = False) -> T:
        """Return what ``work`` returns; an exception in the caller's thread cancels it."""
        self.check()
        call = _Call(work, self._calls)
        try:
            while not self._begin(call, reopen=reopen):
                self._finish_closing()
            call.wait()
            return call.result()
        finally:
            call.cancel()  # the loop does not see a KeyboardInterrupt of this thread

    def _begin(self, call: _Call[Any], *, reopen: bool) -> bool:
        """Start a call; return False if the portal is closing and the caller has to wait."""
        with self._lock:
            if self._closed and not reopen:
                raise UsageError("this queue is closed: call connect(), or use 'with' again")
            if self._closing is not None:
                return False
            self._closed = False
            try:
                call.begin_on(self._thread or self._new_thread())
            except OSError:
                self._thread = None  # the system had no files left for a loop
                raise
            return True

    def _new_thread(self) -> LoopThread:
        for dropped in list(_dropped):
            dropped.join(_DROPPED)  # it may have the same store open
            _dropped.discard(dropped)
        thread = LoopThread("sitq-sync-queue")
        self._pid = os.getpid()
        # A finalizer may have opened the queue meanwhile.
        self._thread = self._thread or thread
        return self._thread

    def connect(
        self, work: Callable[[], Coroutine[Any, Any, None]], *, reopen: bool = False
    ) -> None:
        """Run what opens the store, and note that it is open."""
        self.run(work, reopen=reopen)
        with self._lock:
            self.is_connected = not self._closed

    def close(self) -> None:
        """Run ``last``, cancel all other calls, and stop the loop. Idempotent.

        If a signal handler raises meanwhile, all this goes on without the caller.
        """
        if self._thread is not None and self._pid != os.getpid():
            return  # the thread is the parent's
        self.check()
        with self._lock:
            self._closed = True
            self.is_connected = False
            if self._closing is None and self._thread is not None:
                self._closing = self._new_closing(self._thread)
        closing = self._finish_closing()
        if closing is not None:
            closing.result()

    def _new_closing(self, thread: LoopThread) -> _Call[None]:
        return _Call(partial(_close, thread, self._last, self._calls), set())

    def _finish_closing(self) -> _Call[None] | None:
        """Wait until a requested close has ended."""
        with self._lock:
            closing, thread = self._closing, self._thread
        if closing is None or thread is None:
            return None
        closing.begin_on(thread)
        closing.wait()
        thread.join()
        with self._lock:
            if self._closing is closing:
                self._closing = self._thread = None
        return closing

    def check(self) -> None:
        """Refuse a caller that must not be blocked, or that has no loop after a fork."""
        instead = f"use {self._owner.removeprefix('Sync')} and await its methods"
        refuse_event_loop(self._owner, instead)
        if self._pid != os.getpid():
            if self._thread is not None:
                message = "this queue was opened before a fork: make a new one in the child"
                raise UsageError(message)
            # Another thread of the parent may have held it.
            self._lock, self._pid = threading.RLock(), os.getpid()


class PortalClient:
    """The methods by which a client of a store, for code without a loop, opens and closes it.

    Args:
        portal: runs the coroutines of the client with a loop.
        connect: opens the store.
    """

    def __init__(self, portal: Portal, connect: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._portal: Final = portal
        self._open: Final = connect

    def connect(self) -> None:
        """Open the store; once is enough. After a `close` it opens the store again.

        Raises:
            BackendError: the store cannot be opened.
            UsageError: an event loop runs in this thread, or the store was inherited by a fork.
        """
        self._portal.connect(self._open, reopen=True)

    def close(self) -> None:
        """Close the store; calls of other threads end with `UsageError`. Idempotent.

        If a signal handler raises meanwhile, the closing goes on in a thread of its own.

        Raises:
            UsageError: an event loop runs in this thread.
            BackendError: the store could not be closed in good order.
        """
        self._portal.close()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def _close(
    thread: LoopThread, last: Callable[[], Coroutine[Any, Any, None]], calls: set[_Call[Any]]
) -> None:
    try:
        await last()
        # They have an answer by now, and are about to return it.
        others = [call.task for call in calls if call.task is not None]
        if others:
            await asyncio.wait(others, timeout=_TURN)
    finally:
        thread.stop_soon()


def refuse_event_loop(
    what: str = "SyncTaskQueue", instead: str = "use TaskQueue and await its methods"
) -> None:
    """Refuse a caller that would block its own event loop.

    Args:
        what: what is called, for the error's text.
        instead: what to do instead.

    Raises:
        UsageError: an event loop runs in this thread.
    """
    if in_event_loop():
        raise UsageError(f"{what} would block the event loop that runs in this thread: {instead}")
