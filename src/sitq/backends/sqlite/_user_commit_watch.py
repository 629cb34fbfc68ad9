"""Signal the commits of users' own transactions to those that wait for tasks or results.

SQLite does not report the commits of another connection. So a thread polls for them, on a
connection of its own, while such a commit is expected. If the process dies first, or the commit
comes after the store was closed, workers find the tasks at their next poll.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._errors import is_busy
from sitq.backends.sqlite._rows import dump_rows
from sitq.backends.sqlite._wakeups import WakeupFile

if TYPE_CHECKING:
    from sitq.backends.sqlite._file import DatabaseFile
    from sitq.protocols import Topic

__all__ = ["CommitWatch"]

_log: Final = Log(__name__)

_CANNOT_WATCH: Final = "cannot watch for commits; workers find what they brought by polling"
# Pauses between two looks, in seconds; they grow until something new is expected.
_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.02
_GROWTH: Final = 1.1
# Seconds after which a commit is no longer expected. Most likely it was rolled back: its
# transaction would have blocked all other writers for so long.
_PATIENCE: Final = 60.0
# Seconds without anything expected after which the thread ends.
_IDLE: Final = 2.0
# Seconds that `close` waits for the thread's last look.
_LAST_LOOK: Final = 1.0


class CommitWatch:
    """The commits that are expected in one file, and the thread that polls for them.

    Args:
        file: the store's file; it may be closed by its other users meanwhile.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self._file: Final = file
        self._lock: Final = threading.Lock()
        self._news: Final = threading.Event()
        self._expected: dict[tuple[Topic, str], float] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def expect(self, topic: Topic, task_id: str) -> None:
        """Signal a topic once the task is visible, or visible as final; from any thread."""
        with self._lock:
            if self._closed:
                return
            self._expected[topic, task_id] = time.monotonic() + _PATIENCE
            if self._thread is None:
                self._thread = self._begin()
        self._news.set()

    def close(self) -> None:
        """Look for the last time, and end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._news.set()
        if thread is not None:
            thread.join(_LAST_LOOK)

    def _begin(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="sitq-commits", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is ending, or the system allows no more
            self._expected.clear()
            _log.warning("%s: %s", _CANNOT_WATCH, error)
            return None
        return thread

    def _run(self) -> None:
        try:
            while not self._has_watched():
                time.sleep(_LONGEST_PAUSE)
        except Exception as error:  # noqa: BLE001 - the next one who expects something tries again
            with self._lock:
                self._expected.clear()
                self._thread = None
            _log.warning("%s: %s", _CANNOT_WATCH, error)

    def _has_watched(self) -> bool:
        """Watch until nothing was expected for a while; return False to be called again."""
        pause, version = _FIRST_PAUSE, None
        try:
            with (
                closing(self._file.connect()) as connection,
                closing(WakeupFile(self._file.wakeup_file)) as wakeup_file,
            ):
                connection.execute("PRAGMA query_only = ON")
                while True:
                    is_last = self._closed
                    if self._news.is_set():
                        self._news.clear()
                        pause, version = _FIRST_PAUSE, None
                    is_idle = not self._current()
                    if not is_idle:
                        latest = connection.execute(_sql.DATA_VERSION).fetchone()[0]
                        if latest != version:
                            version = latest
                            self._signal(connection, wakeup_file)
                    has_news = not is_last and self._news.wait(_IDLE if is_idle else pause)
                    if (is_last or (is_idle and not has_news)) and self._ends():
                        return True
                    pause = min(pause * _GROWTH, _LONGEST_PAUSE)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            self._current()
            return self._ends()  # another process opens, recovers or closes the file

    def _ends(self) -> bool:
        """Return whether nothing is expected; if so, the next `expect` starts a new thread."""
        with self._lock:
            if self._closed:
                self._expected.clear()
            if not self._expected:
                self._thread = None
            return not self._expected

    def _current(self) -> list[tuple[Topic, str]]:
        """Return what is still expected."""
        now = time.monotonic()
        with self._lock:
            for key in [key for key, until in self._expected.items() if until <= now]:
                del self._expected[key]
            return list(self._expected)

    def _signal(self, connection: sqlite3.Connection, wakeup_file: WakeupFile) -> None:
        """Signal what is visible, and expect it no more."""
        expected: list[tuple[Topic, str]] = []
        seen: dict[str, bool] = {}
        # Again for what came meanwhile: it may have been committed with what can be seen.
        while (latest := self._current()) != expected:
            expected = latest
            rows = dump_rows([task_id for _, task_id in expected])
            seen = dict(connection.execute(_sql.SEEN, {"rows": rows}).fetchall())
        come: list[tuple[Topic, str]] = [
            (topic, task_id)
            for topic, task_id in expected
            if task_id in seen and (topic == "tasks" or seen[task_id])
        ]
        if come:
            wakeup_file.signal({topic for topic, _ in come})
            with self._lock:
                for key in come:
                    self._expected.pop(key, None)
