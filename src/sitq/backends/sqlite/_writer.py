"""Transactions on the connection for writes of one SQLite store."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._logging import Log
from sitq.backends._batch_queue import group_by_operation
from sitq.backends.sqlite._connection import SQLiteConnection
from sitq.backends.sqlite._errors import (
    BUSY_SECONDS,
    is_shared,
    is_undone,
    retrying,
    roll_back,
    translate_error,
    unknown,
)
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.errors import BackendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq.backends._batch_queue import Request
    from sitq.backends.sqlite._durability import Durability
    from sitq.backends.sqlite._fresh_results import FreshResults
    from sitq.backends.sqlite._store_files import StoreFiles
    from sitq.backends.sqlite._wakeups import FileListeners
    from sitq.protocols import Clock

__all__ = ["Writer"]

T = TypeVar("T")

_log: Final = Log(__name__)


class Writer:
    """Run transactions, in the thread of their connection.

    Args:
        store: opens the connection, and checks the files before each transaction.
        listeners: woken after each commit.
        fresh: gets the results of each transaction.
        clock: read once a transaction.
        durability: decides which transactions are flushed to the disk, and when.
    """

    def __init__(
        self,
        store: StoreFiles,
        listeners: FileListeners,
        fresh: FreshResults,
        clock: Clock,
        durability: Durability,
    ) -> None:
        self._store = store
        self._path = store.path
        self._listeners = listeners
        self._fresh = fresh
        self._clock = clock
        self._durability = durability
        self.connection: Final = SQLiteConnection(store.connect, self._disconnected)

    def _disconnected(self) -> None:
        self._store.close()
        self._listeners.close()

    def end(self) -> None:
        """Flush, and close the connection."""
        with suppress(OSError, sqlite3.Error):  # no caller waits for this flush
            if self._durability.is_behind:
                self.flush()
        self._durability.close()
        self.connection.close_raw()

    def write(self, batch: list[Request[Any]]) -> None:
        """Run requests in one transaction; one that fails does not fail the others."""
        if not batch:
            return
        operations = [request.operation for request in batch]
        try:
            transaction, _ = self._transact(operations, partial(_run_batch, batch))
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            for request in batch:
                request.answers = None
            if len(batch) == 1 or is_shared(error):
                for request in batch:
                    name = request.operation.__name__
                    request.error = translate_error(name, self._path, error)
            else:
                for request in batch:
                    self.write([request])
            return
        self._publish(transaction)

    def write_alone(self, operation: Callable[..., list[T]], items: Sequence[Any]) -> list[T]:
        """Run one operation, in a thread that a signal handler may interrupt.

        Raises:
            BaseException: what the handler raised. The outcome is unknown then.
        """
        name = operation.__name__
        try:
            transaction, answers = self._transact(
                (operation,), lambda transaction: operation(transaction, items)
            )
        except BaseException as error:  # noqa: BLE001 - raised again, translated
            cause = error.__cause__ or error
            if isinstance(cause, Exception):
                translated = translate_error(name, self._path, error)
                raise translated from translated.__cause__
            raise cause from None
        self._publish(transaction)
        if self._durability.needs_flush(operation):
            failure = self._durability.flush_for_long(self.connection)
            if failure is not None:
                raise unknown(name, self._path, failure)
        return answers

    def needs_flush(self, request: Request[Any]) -> bool:
        """Return whether a request that was written must be flushed before it is answered."""
        return request.error is None and self._durability.needs_flush(request.operation)

    def flush_for(self, batch: list[Request[Any]]) -> None:
        """Flush before requests are answered; each gets an error if that fails."""
        failure = self._durability.flush_for_long(self.connection)
        if failure is not None:
            for request in batch:
                request.error = unknown(request.operation.__name__, self._path, failure)

    @property
    def is_behind(self) -> bool:
        """Return whether a power cut could undo commits."""
        return self._durability.is_behind

    def flush(self) -> None:
        """Flush all commits so far."""
        self._durability.flush(self.connection.opened)

    def _publish(self, transaction: SQLiteTransaction) -> None:
        """Wake those that wait for the changes of a transaction."""
        topics = transaction.changed
        try:
            self._fresh.note(transaction)  # first: those that are woken ask for them
            if topics:
                self._store.signal(topics)
                self._listeners.notify(topics)
        except Exception as error:  # noqa: BLE001 - the transaction is committed all the same
            _log.error("%s: cannot wake others after a commit", self._path, error=error)

    def _transact(
        self,
        operations: Sequence[Callable[..., Any]],
        carry_out: Callable[[SQLiteTransaction], T],
    ) -> tuple[SQLiteTransaction, T]:
        """Call a function in a transaction, again while the file is locked."""
        return retrying(partial(self._try_to_transact, operations, carry_out), BUSY_SECONDS)

    def _try_to_transact(
        self,
        operations: Sequence[Callable[..., Any]],
        carry_out: Callable[[SQLiteTransaction], T],
    ) -> tuple[SQLiteTransaction, T]:
        connection = self._ready()
        self._durability.prepare(connection, operations)
        changes = connection.total_changes
        is_ending = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            transaction = SQLiteTransaction(connection, self._clock.now())
            result = carry_out(transaction)
            changed = connection.total_changes != changes
            is_ending = True
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                if not roll_back(connection):
                    self._replace()
            elif is_ending and not is_undone(error):
                self._durability.doubt()
                failure = unknown(operations[0].__name__, self._path, error)
                raise failure from failure.__cause__
            raise
        self._durability.committed(changed=changed)
        return transaction, result

    # -- the connection ----------------------------------------------------------------------

    def usable(self) -> sqlite3.Connection:
        """Return the connection, with no transaction open on it.

        Raises:
            UsageError: the connection is closed.
            BackendError: it cannot be used, and no other one can be opened.
        """
        if self.connection.is_open:
            if roll_back(self.connection.opened):
                return self.connection.opened
            self._replace()
        return self.connection.reopened(self._store.reconnect)

    def _replace(self) -> None:
        """Close a connection that cannot be rolled back, which releases its locks."""
        if not self._store.is_file:
            return  # the tasks of a store in memory would be lost
        self.connection.drop()
        self._store.file.forget_files()  # SQLite may have removed the log
        self._durability.renew()

    def _ready(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now, as `usable` does."""
        try:
            connection = self.usable()
            self._store.file.check_same()
        except BackendError:
            if not self._store.file.is_replaced():
                raise
            return self._move()
        if self._store.renew_wakeup_file():
            self._moved()
        return connection

    def _move(self) -> sqlite3.Connection:
        """Open the file that has replaced the store's file."""
        if self.connection.is_open:
            self._store.finish(self.connection.opened)
            self.connection.drop()
        self._durability.renew()
        self.connection.attach(self._store.move)
        self._moved()
        return self.connection.opened

    def _moved(self) -> None:
        """Watch the wake-up file that is at the path now."""
        self._fresh.forget()
        self._listeners.watch_anew_soon()

    def try_to_move(self) -> None:
        """Open the file that has replaced the store's file, if that is possible now."""
        with suppress(BackendError, UsageError, sqlite3.Error, OSError):
            retrying(self._ready, BUSY_SECONDS)


def _run_batch(batch: list[Request[Any]], transaction: SQLiteTransaction) -> None:
    """Run all requests of a batch, and give each its answers."""
    answers: list[list[Any]] = []
    for operation, group in group_by_operation(batch):
        found = iter(operation(transaction, [item for request in group for item in request.items]))
        answers += [list(islice(found, len(request.items))) for request in group]
    # Set before the commit, so that nothing after it can fail.
    for request, answer in zip(batch, answers, strict=True):
        request.answers = answer
