"""What is open between the first `open` and the last `close` of a SQLite backend."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sitq.backends._operations import ADMIN_VERBS, operations_of
from sitq.backends.sqlite import _admin, _operations, _sql
from sitq.backends.sqlite._database import SQLiteDatabase
from sitq.backends.sqlite._durability import Durability
from sitq.backends.sqlite._file import MEMORY
from sitq.backends.sqlite._fresh_results import FreshResults
from sitq.backends.sqlite._lease_keeper import FileLeaseKeeper, MemoryLeaseKeeper
from sitq.backends.sqlite._loop_waker import LoopWaker
from sitq.backends.sqlite._store_files import StoreFiles
from sitq.backends.sqlite._wakeups import FileListeners
from sitq.backends.sqlite._writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sitq._loops import LoopRef
    from sitq.administration import WorkerKeeper
    from sitq.backends.sqlite._operations import SQLiteTransaction
    from sitq.protocols import Clock, Listener, Topic

__all__ = ["OPERATIONS", "SQLiteSession"]

OPERATIONS: Final = operations_of(_operations) | operations_of(_admin, ADMIN_VERBS)
_POLICIES: Final = {operation: verb.durability for verb, operation in OPERATIONS.items()}


class SQLiteSession:
    """The parts of one open store, for one event loop.

    Args:
        loop: the event loop.
        path: the database's path, or `MEMORY`.
        synchronous: SQLite's ``synchronous``, ``"FULL"`` or ``"NORMAL"``.
        clock: the clock to judge by.
    """

    def __init__(self, loop: LoopRef, path: str, synchronous: str, clock: Clock) -> None:
        self.loop: Final = loop
        self.pid: Final = os.getpid()
        self.clock: Final = clock
        log = wakeup_file = None
        if path != MEMORY:
            # Wherever the program goes meanwhile, this is the file. Links are not followed.
            path = os.path.abspath(path)  # noqa: PTH100
            log = f"{path}-wal" if synchronous == "FULL" else None
            wakeup_file = f"{path}-bell"
        self._store: Final = StoreFiles(path, synchronous)
        self._waker: Final = LoopWaker(loop)
        self._listeners: Final = FileListeners(loop, self._waker, wakeup_file, self._store.mark)
        self.fresh_results: Final = FreshResults(self._listeners)
        durability = Durability(log, _POLICIES)
        writer = Writer(self._store, self._listeners, self.fresh_results, clock, durability)
        self.database: Final = SQLiteDatabase(loop, self._waker, writer, self._store, clock)

    @contextmanager
    def listen(self, topic: Topic) -> Iterator[Listener]:
        """Listen for a topic."""
        try:
            with self._listeners.listen(topic, self._data_version) as listener:
                yield listener
        finally:
            if not self._listeners.are_for("results"):
                self.fresh_results.forget()

    async def _data_version(self) -> int:
        return await self.database.read(_data_version)

    def is_at(self, path: str) -> bool:
        """Return whether a path leads to the file that is open."""
        return self._store.file.is_at(path)

    def expect(self, topic: Topic, task_id: str) -> None:
        """Wake listeners once a transaction that is not sitq's has been committed."""
        self._store.expect(topic, task_id)

    def lease_keeper(self) -> WorkerKeeper:
        """Return a lease keeper for the calling thread."""
        if not self._store.is_file:
            return MemoryLeaseKeeper(self.database)
        return FileLeaseKeeper(self._store, self.clock)

    async def connect(self) -> None:
        """Open the file, or make it."""
        try:
            await self.database.connect()
        except BaseException:
            self._waker.close()
            raise

    def abandon(self) -> None:
        """Start to close the connections, after all earlier requests."""
        self.database.abandon()
        self.loop.call_soon(self._listeners.end)
        self._waker.abandon()

    async def close(self) -> None:
        """Close the connections, after all earlier requests."""
        self._listeners.end()
        try:
            await self.database.close()
        finally:
            self._waker.close()


def _data_version(transaction: SQLiteTransaction) -> int:
    """Return a number that changes when another connection has committed."""
    version: int = transaction.execute(_sql.DATA_VERSION).fetchone()[0]
    return version
