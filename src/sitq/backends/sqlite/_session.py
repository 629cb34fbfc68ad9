"""What is open between the first `open` and the last `close` of a SQLite backend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from sitq._mailbox import Mailbox
from sitq.backends.sqlite import _schema, _sql
from sitq.backends.sqlite._bell import Bell
from sitq.backends.sqlite._commits import CommitWatch
from sitq.backends.sqlite._driver import BUSY_SECONDS, Database, retrying
from sitq.backends.sqlite._durability import Durability, Promise
from sitq.backends.sqlite._file import MEMORY, File
from sitq.backends.sqlite._keeper import FileLeaseKeeper, MemoryLeaseKeeper
from sitq.backends.sqlite._listening import Listeners
from sitq.backends.sqlite._reserving import reserve
from sitq.backends.sqlite._units import enqueue, get_results, set_progress
from sitq.errors import BackendConnectionError, UsageError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._work import Work
    from sitq.ids import TaskId
    from sitq.models import Result
    from sitq.protocols import Clock, LeaseKeeper, Listener, Topic

__all__ = ["Session"]

# Of so many tasks that end together the results are kept at hand for those who wait.
_FEW: Final = 16

# A new task that others see early does no harm: only when it is safe, its caller hears of it.
# A power cut that undoes a reservation has ended its worker too.
_PROMISES: Final[Mapping[Callable[..., Any], Promise]] = {
    enqueue: Promise.ACKNOWLEDGED,
    reserve: Promise.SOON,
    set_progress: Promise.SOON,
}


class Session:
    """A file, its connection, its bell and those who listen to it, for one event loop."""

    def __init__(self, loop: LoopRef, path: str, synchronous: str, clock: Clock) -> None:
        self.loop: Final = loop
        self.pid: Final = os.getpid()
        if path != MEMORY:
            # Wherever the program goes meanwhile, this is the file. Links are not followed.
            path = os.path.abspath(path)  # noqa: PTH100
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._file: File | None = None
        self._bell: Bell | None = None
        self._commits: CommitWatch | None = None
        self._fresh: dict[TaskId[Any], Result[Any] | None] = {}
        self._mail: Final = Mailbox(loop)
        self.database: Final = Database(
            self._connect,
            None if path == MEMORY else self._connect_again,
            self._disconnected,
            self._check_file,
            path,
            loop,
            self._mail,
            clock,
            Durability(f"{path}-wal" if _is_flushed(path, synchronous) else None, _PROMISES),
            frozenset({enqueue}),
            self._tell,
        )
        bell = None if path == MEMORY else f"{path}-bell"
        self.listeners: Final = Listeners(loop, self._mail, bell, self._look, self._prompt)

    def _connect(self) -> sqlite3.Connection:
        """Check, open and migrate the file; in the database thread."""
        file = self._file = File(self._path)
        if self._path != MEMORY:
            retrying(lambda: _schema.check(file), BUSY_SECONDS)
        connection = file.connect()
        try:
            retrying(lambda: self._prepare(connection), BUSY_SECONDS)
            file.note_files()
            if self._path != MEMORY:
                self._bell = Bell(file.bell)
                self.listeners.know(self._bell.mark)
                self._commits = CommitWatch(file)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_again(self) -> sqlite3.Connection:
        """Open the file once more, for reads."""
        if self._file is None:
            raise UsageError("the backend is not open")
        connection = self._file.connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._path != MEMORY:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                message = f"{self._path}: no write-ahead log on this file system ({mode})"
                raise BackendConnectionError(message)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        _schema.migrate(connection, self._path)

    def _check_file(self) -> None:
        if self._file is not None:
            self._file.check_same()

    def _tell(self, work: Work) -> None:
        """Wake those who wait for a change; in the database thread, after the commit."""
        topics = work.topics
        # Before the bell, which wakes those who ask for them.
        self._fresh = self._results_of(work) if "results" in topics else {}
        if topics and self._bell is not None:
            self._bell.ring(topics)
        if topics:
            self.listeners.notify(topics)

    def _results_of(self, work: Work) -> dict[TaskId[Any], Result[Any] | None]:
        """The results that somebody here may be about to ask for."""
        if not 0 < len(work.ended) <= _FEW or not self.listeners.are_for("results"):
            return {}
        try:
            return get_results(work, work.ended)
        except Exception:  # noqa: BLE001 - who asks will be told
            return {}

    def take_fresh(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None] | None:
        """The results of tasks that have just ended; ``None`` if one of them has not."""
        fresh = self._fresh
        if any(fresh.get(task_id) is None for task_id in task_ids):
            return None
        return {task_id: fresh.pop(task_id) for task_id in dict.fromkeys(task_ids)}

    def forget_fresh(self) -> None:
        """Keep no results in memory for those who listened."""
        if not self.listeners.are_for("results"):
            self._fresh = {}

    def _prompt(self) -> list[Listener]:
        """Have those who stand by for tasks look for what others have stored."""
        return [request.listener for request in self.database.commits.prompt()]

    async def _look(self) -> int:
        return await self.database.read(_data_version)

    @property
    def clock(self) -> Clock:
        """The clock to judge by."""
        return self._clock

    def is_at(self, path: str) -> bool:
        """Tell if a path leads to the file that is open."""
        return self._file is not None and self._file.is_at(path)

    def expect(self, topic: Topic, task_id: str) -> None:
        """Wake those who wait once a transaction that is not sitq's has been committed."""
        if self._commits is not None:
            self._commits.expect(topic, task_id)

    def lease_keeper(self) -> LeaseKeeper:
        """A lease keeper for the calling thread."""
        if self._file is None:
            raise UsageError("the backend is not open")
        if self._path == MEMORY:
            return MemoryLeaseKeeper(self.database)
        return FileLeaseKeeper(self._file, self._clock)

    async def connect(self) -> None:
        """Open the file, or make it."""
        try:
            await self.database.connect()
        except BaseException:
            self._mail.close()
            raise

    def abandon(self) -> None:
        """Close the connections soon; what was asked of them before is done."""
        self.database.abandon()
        self.loop.call_soon(self.listeners.end)
        self._mail.abandon()

    async def close(self) -> None:
        """Close the connections, after all that was asked of them before."""
        self.listeners.end()
        try:
            await self.database.close()
        finally:
            self._mail.close()

    def _disconnected(self) -> None:
        """Give the bell up; in the database thread, so that a cancelled opening does it too."""
        commits, self._commits = self._commits, None
        if commits is not None:
            commits.close()
        self.listeners.close()
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()


def _is_flushed(path: str, synchronous: str) -> bool:
    """Tell if a power cut must not undo what was acknowledged."""
    return path != MEMORY and synchronous == "FULL"


def _data_version(work: Work) -> int:
    """A number that changes when another connection has committed."""
    version: int = work.execute(_sql.DATA_VERSION).fetchone()[0]
    return version
