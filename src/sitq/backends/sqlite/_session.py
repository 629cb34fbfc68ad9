"""What is open between the first `open` and the last `close` of a SQLite backend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._operations import operations_of
from sitq.backends.sqlite import _operations, _sql
from sitq.backends.sqlite._database import SQLiteDatabase
from sitq.backends.sqlite._durability import Durability
from sitq.backends.sqlite._file import MEMORY
from sitq.backends.sqlite._lease_keeper import FileLeaseKeeper, MemoryLeaseKeeper
from sitq.backends.sqlite._loop_waker import LoopWaker
from sitq.backends.sqlite._store_files import StoreFiles
from sitq.backends.sqlite._wakeups import FileListeners

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._operations import SQLiteTransaction
    from sitq.ids import TaskId
    from sitq.models import Result
    from sitq.protocols import Clock, LeaseKeeper, Topic

__all__ = ["OPERATIONS", "SQLiteSession"]

# Of so many tasks that end together the results are kept at hand for those who wait.
_FEW: Final = 16

OPERATIONS: Final = operations_of(_operations)
_POLICIES: Final = {operation: verb.durability for verb, operation in OPERATIONS.items()}


class SQLiteSession:
    """A file, its connection, its bell and those who listen to it, for one event loop."""

    def __init__(self, loop: LoopRef, path: str, synchronous: str, clock: Clock) -> None:
        self.loop: Final = loop
        self.pid: Final = os.getpid()
        if path != MEMORY:
            # Wherever the program goes meanwhile, this is the file. Links are not followed.
            path = os.path.abspath(path)  # noqa: PTH100
        self._clock = clock
        self._store: Final = StoreFiles(path, synchronous, self._know)
        self._fresh: dict[TaskId[Any], Result[Any] | None] = {}
        self._waker: Final = LoopWaker(loop)
        self.database: Final = SQLiteDatabase(
            self._store,
            self._disconnected,
            loop,
            self._waker,
            clock,
            Durability(f"{path}-wal" if _is_flushed(path, synchronous) else None, _POLICIES),
            self._tell,
            self._moved,
        )
        bell = None if path == MEMORY else f"{path}-bell"
        self.listeners: Final = FileListeners(loop, self._waker, bell, self._look)

    def _moved(self) -> None:
        """Watch the wake-up file of another store; in the database thread."""
        self._fresh = {}
        self._waker.post(self.listeners.watch_anew)

    def _know(self, mark: bytes) -> None:
        self.listeners.know(mark)

    def _tell(self, work: SQLiteTransaction) -> None:
        """Wake those who wait for a change; in the database thread, after the commit."""
        topics = work.changed
        # Before the bell, which wakes those who ask for them.
        self._fresh = self._results_of(work) if "results" in topics else {}
        if topics:
            self._store.signal(topics)
            self.listeners.notify(topics)

    def _results_of(self, work: SQLiteTransaction) -> dict[TaskId[Any], Result[Any] | None]:
        """The results that somebody here may be about to ask for."""
        if not 0 < len(work.ended) <= _FEW or not self.listeners.are_for("results"):
            return {}
        try:
            return _operations.get_results(work, work.ended)
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

    async def _look(self) -> int:
        return await self.database.read(_data_version)

    @property
    def clock(self) -> Clock:
        """The clock to judge by."""
        return self._clock

    def is_at(self, path: str) -> bool:
        """Tell if a path leads to the file that is open."""
        return self._store.file.is_at(path)

    def expect(self, topic: Topic, task_id: str) -> None:
        """Wake those who wait once a transaction that is not sitq's has been committed."""
        self._store.expect(topic, task_id)

    def lease_keeper(self) -> LeaseKeeper:
        """A lease keeper for the calling thread."""
        if not self._store.is_file:
            return MemoryLeaseKeeper(self.database)
        return FileLeaseKeeper(self._store, self._clock)

    async def connect(self) -> None:
        """Open the file, or make it."""
        try:
            await self.database.connect()
        except BaseException:
            self._waker.close()
            raise

    def abandon(self) -> None:
        """Close the connections soon; what was asked of them before is done."""
        self.database.abandon()
        self.loop.call_soon(self.listeners.end)
        self._waker.abandon()

    async def close(self) -> None:
        """Close the connections, after all that was asked of them before."""
        self.listeners.end()
        try:
            await self.database.close()
        finally:
            self._waker.close()

    def _disconnected(self) -> None:
        """Give the bell up; in the database thread, so that a cancelled opening does it too."""
        self._store.close()
        self.listeners.close()


def _is_flushed(path: str, synchronous: str) -> bool:
    """Tell if a power cut must not undo what was acknowledged."""
    return path != MEMORY and synchronous == "FULL"


def _data_version(work: SQLiteTransaction) -> int:
    """A number that changes when another connection has committed."""
    version: int = work.execute(_sql.DATA_VERSION).fetchone()[0]
    return version
