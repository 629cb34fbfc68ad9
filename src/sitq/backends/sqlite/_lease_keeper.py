"""Lease keepers: renew leases from a thread, without an event loop."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sitq.backends.sqlite import _operations
from sitq.backends.sqlite._errors import is_busy, retrying, roll_back, translate_error
from sitq.backends.sqlite._operations import SQLiteTransaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.backends.sqlite._database import SQLiteDatabase
    from sitq.backends.sqlite._store_files import StoreFiles
    from sitq.models import Lease, LeaseState
    from sitq.protocols import Clock

__all__ = ["FileLeaseKeeper", "MemoryLeaseKeeper"]

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
        try:
            return retrying(
                lambda: self._renew(leases, seconds), _BUSY_SECONDS, longest=_LONGEST_PAUSE
            )
        except BaseException as error:
            busy = isinstance(error, sqlite3.Error) and is_busy(error)
            if not (busy and self._connection and not self._connection.in_transaction):
                # Ends its transaction too. Not if the file is just locked: a new connection
                # needs a descriptor, and there may be none.
                self.close()
            translated = translate_error("renew", self._file.path, error)
            if translated is error:
                raise
            raise translated from error

    def _renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        if self._file is not self._store.file:  # another one has been put in its place
            self.close()
            self._file = self._store.file
        self._file.check_same()
        if self._connection is None:
            self._connection = self._file.connect()
            # A heartbeat need not survive a power cut, so it waits for no disk.
            self._connection.execute("PRAGMA synchronous = NORMAL")
        connection = self._connection
        if not leases:
            # The first statement opens the files beside the database.
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
            return []
        try:
            connection.execute("BEGIN IMMEDIATE")
            states = _operations.renew(
                SQLiteTransaction(connection, self._clock.now()), leases, seconds
            )
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        return states

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

        def renew(transaction: SQLiteTransaction, _: object) -> list[list[LeaseState]]:
            return [_operations.renew(transaction, leases, seconds)]

        return self._database.write_blocking(renew, (None,))[0]

    def close(self) -> None:
        """See `sitq.protocols.LeaseKeeper.close`."""
