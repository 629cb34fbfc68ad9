"""The only file that knows aiosqlite: a connection, used from a thread of its own.

The thread's queue is used directly instead of through aiosqlite's coroutines: a unit of work then
cannot be cut in half by a cancellation, its answer goes to whichever loop asked, asyncio's or
trio's, and a loop that has ended meanwhile is no error in the thread.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Final, TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from sitq._loops import no_op
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SQLiteConnection"]

T = TypeVar("T")


class SQLiteConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread takes plain functions.

    The thread is a daemon: a forgotten close must not keep the process alive.

    Args:
        connector: opens the database; in the thread.
        closed: called in the thread, after the closing.
    """

    def __init__(
        self,
        connector: Callable[[], sqlite3.Connection],
        closed: Callable[[], None] = no_op,
    ) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._closed = closed
        # A garbage collection may come while it is held, and end the connection.
        self._posting = threading.RLock()
        self.usage: Final = _Usage()
        self._has_ended = False
        self._is_closed = False
        self._thread.daemon = True
        self._thread.start()

    def __del__(self) -> None:
        """End the thread if the connection was not closed."""
        self._tx.put_nowait((None, partial(_shut, self._connection)))

    @property
    def is_open(self) -> bool:
        """Return whether it is open: from the opening to the closing, or to a `drop`."""
        return self._connection is not None

    @property
    def opened(self) -> sqlite3.Connection:
        """Return the connection itself; for use in the thread."""
        if self._connection is None:
            raise UsageError("the backend is closed; open it again (connect) before using it")
        return self._connection

    def post(self, function: Callable[[], object]) -> None:
        """Queue a function that raises nothing for the thread.

        Once the thread has ended, the caller's thread calls it, with the connection closed.
        """
        with self._posting:
            if not self._has_ended:
                self._tx.put_nowait((None, _Once(function, self.usage)))
                return
        function()

    def attach(self, connector: Callable[[], sqlite3.Connection] | None = None) -> None:
        """Connect, as ``connector`` does it this time; in the thread."""
        self._connection = (connector or self._connector)()
        _open.add(self._connection)

    def reopened(
        self, connector: Callable[[], sqlite3.Connection] | None = None
    ) -> sqlite3.Connection:
        """Return the connection itself, opened again if it was dropped; in the thread."""
        if self._connection is None and not self._is_closed:
            self.attach(connector)
        return self.opened

    def drop(self) -> None:
        """Close, to connect again later; in the thread. Its open transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                _close(connection)

    def close_raw(self) -> None:
        """Close; in the thread."""
        self.drop()
        if not self._is_closed:
            self._is_closed = True
            self._closed()

    def detach(self) -> None:
        """Close and end the thread, after what it was asked to do before."""
        self._running = False
        self.post(self._end)

    def _end(self) -> object:
        with suppress(Exception):
            self.close_raw()
        with self._posting:
            self._has_ended = True
        self._call_the_rest()
        return _STOP_RUNNING_SENTINEL

    def _call_the_rest(self) -> None:
        """Call what was posted after the end: callers wait for its answers."""
        while True:
            try:
                _, function = self._tx.get_nowait()
            except Empty:
                return
            with suppress(Exception):
                function()


class _Usage:
    """A lock that knows which thread uses a connection."""

    __slots__ = ("_lock", "_thread")

    def __init__(self) -> None:
        # Only the connection's own thread takes it twice: at its end, for what is left.
        self._lock = threading.RLock()
        self._thread: int | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function once no other thread uses the connection."""
        with self._lock:
            return self._call(function)

    def try_call(self, function: Callable[[], T]) -> T | None:
        """Call a function in the caller's own thread, if the connection is not in use.

        What it raises is raised here. It must leave the connection as the thread may find it.

        Returns:
            What it returned; ``None`` if the connection is in use: nothing was called.

        Raises:
            UsageError: the caller has interrupted a use of its own.
        """
        self.refuse_nested()
        try:
            if not self._lock.acquire(blocking=False):
                return None
        except BaseException:
            # What a signal handler raises may come once the lock is held; no thread gets it then.
            with suppress(RuntimeError):  # it is not held by this thread
                self._lock.release()
            raise
        try:
            return self._call(function)
        finally:
            self._lock.release()

    def _call(self, function: Callable[[], T]) -> T:
        before, self._thread = self._thread, threading.get_ident()
        try:
            return function()
        finally:
            self._thread = before

    def refuse_nested(self) -> None:
        """Refuse a caller that has interrupted its thread's own use of the connection."""
        if self._thread == threading.get_ident():
            raise UsageError(
                "a signal handler or a finalizer cannot enqueue while it interrupts the store's "
                "work in its own thread"
            )


class _Once:
    """A call that drops its function once it has been made.

    The thread keeps a reference to what it called last. If that held the connection, a connection
    without other references would stay open.
    """

    __slots__ = ("_function", "_usage")

    def __init__(self, function: Callable[[], object], usage: _Usage) -> None:
        self._function = function
        self._usage = usage

    def __call__(self) -> object:
        function, self._function = self._function, no_op
        return self._usage.call(function)


# All open connections: one without other references is closed by `__del__`, not just collected.
_open: Final[set[sqlite3.Connection]] = set()


def _close(connection: sqlite3.Connection) -> None:
    _open.discard(connection)
    connection.close()


def _shut(connection: sqlite3.Connection | None) -> object:
    if connection is not None:
        _close(connection)
    return _STOP_RUNNING_SENTINEL
