"""Lease keepers: renew leases from a thread, without an event loop."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq.backends.sqlite import _admin, _operations
from sitq.backends.sqlite._errors import is_busy, retrying, roll_back, translate_error
from sitq.backends.sqlite._operations import SQLiteTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq.administration import WorkerOrders, WorkerReport
    from sitq.backends.sqlite._database import SQLiteDatabase
    from sitq.backends.sqlite._store_files import StoreFiles
    from sitq.models import Lease, LeaseState
    from sitq.protocols import Clock

__all__ = ["FileLeaseKeeper", "MemoryLeaseKeeper"]

T = TypeVar("T")

# A heartbeat is a short write among long ones. It tries often, and gives up early: the next
# heartbeat tries again.
_BUSY_SECONDS: Final = 2.0
_LONGEST_PAUSE: Final = 0.002


class FileLeaseKeeper:
    """Renews leases over a connection of its own, made by the first renewal."""

    def __init__(self, store: StoreFiles, clock: Clock) -> None:
        self._store = store
        self._file = store.file
        self._clock = clock
        self._connection: sqlite3.Connection | None = None

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        if not leases:
            self._try("renew", self._prepare)
            return []
        return self._write("renew", _operations.renew, leases, seconds)

    def report(self, report: WorkerReport) -> WorkerOrders:
        """See `sitq.administration.WorkerKeeper.report`."""
        return self._write("report", _admin.report, report)

    def deregister(self, worker_id: str) -> None:
        """See `sitq.administration.WorkerKeeper.deregister`."""
        self._write("deregister", _admin.deregister, worker_id)

    def _write(self, name: str, operation: Callable[..., T], *parameters: Any) -> T:
        """Run an operation in a transaction."""

        def write() -> T:
            connection = self._prepare()
            try:
                connection.execute("BEGIN IMMEDIATE")
                transaction = SQLiteTransaction(connection, self._clock.now())
                answer = operation(transaction, *parameters)
                connection.execute("COMMIT")
            except BaseException:
                roll_back(connection)
                raise
            return answer

        return self._try(name, write)

    def _try(self, name: str, work: Callable[[], T]) -> T:
        """Repeat work while the file is locked; drop a connection that has failed."""
        try:
            return retrying(work, _BUSY_SECONDS, longest=_LONGEST_PAUSE)
        except BaseException as error:
            busy = isinstance(error, sqlite3.Error) and is_busy(error)
            if not (busy and self._connection and not self._connection.in_transaction):
                # Ends its transaction too. Not if the file is just locked: a new connection
                # needs a descriptor, and there may be none.
                self.close()
            translated = translate_error(name, self._file.path, error)
            if translated is error:
                raise
            raise translated from error

    def _prepare(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now."""
        if self._file is not self._store.file:  # another one has been put in its place
            self.close()
            self._file = self._store.file
        self._file.check_same()
        if self._connection is None:
            self._connection = self._file.connect()
            # A heartbeat need not survive a power cut, so it waits for no disk.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            # The first statement opens the files beside the database.
            self._connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        return self._connection

    def close(self) -> None:
        """See `sitq.protocols.LeaseKeeper.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


class MemoryLeaseKeeper:
    """Renews leases of a private database, through its only connection's thread."""

    def __init__(self, database: SQLiteDatabase) -> None:
        self._database = database

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        return self._write(_operations.renew, leases, seconds)

    def report(self, report: WorkerReport) -> WorkerOrders:
        """See `sitq.administration.WorkerKeeper.report`."""
        return self._write(_admin.report, report)

    def deregister(self, worker_id: str) -> None:
        """See `sitq.administration.WorkerKeeper.deregister`."""
        self._write(_admin.deregister, worker_id)

    def _write(self, operation: Callable[..., T], *parameters: Any) -> T:
        """Run an operation in a transaction."""

        def write(transaction: SQLiteTransaction, _: object) -> list[T]:
            return [operation(transaction, *parameters)]

        return self._database.write_blocking(write, (None,))[0]

    def close(self) -> None:
        """See `sitq.protocols.LeaseKeeper.close`."""
