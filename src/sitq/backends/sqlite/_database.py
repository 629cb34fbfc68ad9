"""Run operations in the database threads of one SQLite store.

Writes that wait at the same time share a transaction. Reads run one by one, in a thread and on a
connection of their own.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._logging import Log
from sitq._loops import no_op
from sitq.backends._batch_queue import BlockingRequest, Compensate, Request
from sitq.backends.sqlite._batch_writer import BatchWriter, name_of, run_batch
from sitq.backends.sqlite._connection import SQLiteConnection
from sitq.backends.sqlite._errors import (
    BUSY_SECONDS,
    is_busy,
    is_shared,
    is_undone,
    retrying,
    roll_back,
    translate_error,
    unknown,
)
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.errors import BackendError, SitqError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._durability import Durability
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.backends.sqlite._store_files import StoreFiles
    from sitq.protocols import Clock

__all__ = ["SQLiteDatabase"]


T = TypeVar("T")

_log: Final = Log(__name__)


class SQLiteDatabase:
    """Run the operations of one store: writes in shared transactions, reads one by one.

    Reads use a connection and a thread of their own. They do not wait for a write that waits for
    the lock of another process.

    Args:
        store: opens the connections, and checks the files before each transaction.
        disconnected: called in the database thread, after the connection is closed.
        loop: the event loop of all callers.
        waker: calls functions in that loop from the database threads.
        clock: read once a transaction.
        durability: decides which transactions are flushed to the disk, and when.
        committed: called in the database thread with each transaction, before its callers are
            woken.
        moved: called in the database thread once the file that replaced the store, or its wake-up
            file, is open.
    """

    def __init__(
        self,
        store: StoreFiles,
        disconnected: Callable[[], None],
        loop: LoopRef,
        waker: LoopWaker,
        clock: Clock,
        durability: Durability,
        committed: Callable[[SQLiteTransaction], None],
        moved: Callable[[], None],
    ) -> None:
        self._store = store
        self._path = store.path
        self._loop = loop
        self._waker = waker
        self._clock = clock
        self._durability = durability
        self._committed = committed
        self._moved = moved
        self._connection = SQLiteConnection(store.connect, disconnected)
        self._reader: SQLiteConnection | None = None
        self._is_closing = False
        self.commits: Final = BatchWriter(
            loop,
            waker,
            self._connection.post,
            self._write,
            self._needs_disk,
            self._keep,
        )

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            BackendError: it could not be opened.
        """
        try:
            await self._ask("connect", self._connection.attach, self._connection)
        except BaseException:
            self._connection.detach()
            raise

    async def close(self) -> None:
        """Close the connections, after all earlier requests."""
        ended = Request[None](self._loop, list, ())

        def end() -> None:
            try:
                self._end()
                ended.answers = [None]
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                ended.error = translate_error("close", self._path, error)
            self._waker.post(ended.wake)

        self._close_soon(end)  # whatever becomes of the caller
        await ended.wait()
        ended.result()

    def abandon(self) -> None:
        """Start to close the connections without waiting; the callers' loop has ended."""
        self._close_soon(self._end)

    def _close_soon(self, end: Callable[[], object]) -> None:
        """Start to close the connection for reads, then the one for writes."""
        self._is_closing = True
        reader, self._reader = self._reader, None

        def end_writer() -> None:
            self._connection.post(end)
            self._connection.detach()

        if reader is None:
            end_writer()
            return

        def end_reader() -> None:
            try:
                reader.close_raw()
            finally:
                end_writer()

        reader.post(end_reader)
        reader.detach()

    def _end(self) -> None:
        # Requests that came while a batch was written are not in the thread's queue yet.
        self.commits.drain()
        with suppress(OSError, sqlite3.Error):  # no caller waits for this flush
            if self._durability.is_behind:
                self._flush()
        self._durability.close()
        self._connection.close_raw()

    async def write(
        self,
        operation: Callable[..., list[T]],
        items: Sequence[Any],
        compensate: Compensate[T] | None = None,
    ) -> list[T]:
        """Run an operation in a transaction that it shares with other requests."""
        return await self.commits.submit(operation, items, compensate)

    def write_blocking(self, operation: Callable[..., list[T]], items: Sequence[Any]) -> list[T]:
        """Run an operation in a transaction, from a thread without an event loop.

        If the connection is idle, the caller's own thread runs it.
        """
        if self.commits.is_idle:
            answers = self._connection.lend(partial(self._write_alone, operation, items))
            if answers is not None:
                return answers
        else:
            self._connection.refuse_nested()  # the thread would wait for itself
        return self.commits.submit_blocking(BlockingRequest(self._loop, operation, items))

    def _write_alone(self, operation: Callable[..., list[T]], items: Sequence[Any]) -> list[T]:
        """Run one operation, in a thread that a signal handler may interrupt.

        Raises:
            BaseException: what the handler raised. The outcome is unknown then.
        """
        carry_out = partial(self._transaction, (operation,), operation, items)
        try:
            work, answers = retrying(carry_out, BUSY_SECONDS)
        except BaseException as error:  # noqa: BLE001 - raised again, translated
            cause = error.__cause__ or error
            if isinstance(cause, Exception):
                translated = translate_error(operation.__name__, self._path, error)
                raise translated from translated.__cause__
            raise cause from None
        self._publish(work)
        if self._durability.needs_flush(operation):
            failure = self._durability.flush_for_long(self._connection)
            if failure is not None:
                raise unknown(operation.__name__, self._path, failure)
        return answers

    async def read(self, unit: Callable[..., T], *parameters: Any) -> T:
        """Run a read outside any transaction."""
        connection = self._connection
        # A reader that is made while the backend is being closed would stay open.
        if self._store.is_file and not self._is_closing:
            if self._reader is None:
                self._reader = SQLiteConnection(self._store.connect_for_reads, no_op)
            connection = self._reader
        run = partial(self._read, connection, unit, parameters)
        return await self._ask(unit.__name__, run, connection)

    async def flush(self) -> None:
        """Flush what was committed and is not on the disk yet.

        Raises:
            BackendError: the flush failed.
        """
        if self._durability.is_behind:
            await self._ask("flush", self._flush, self._connection)

    async def shorten_log(self) -> None:
        """Empty a long write-ahead log, if no reader needs it any more.

        This uses a connection and a thread of its own: copying the log takes long, and neither
        writes nor reads wait for it.

        Raises:
            BackendError: the checkpoint failed.
        """
        if not self._store.is_file or not self._store.file.log_is_long():
            return
        connection = SQLiteConnection(self._store.connect_for_reads, no_op)

        def shorten() -> None:
            if not connection.is_open:  # this function is called again while the file is locked
                connection.attach()
            for mode in ("PASSIVE", "TRUNCATE"):  # TRUNCATE blocks writers for a moment
                busy, *_ = connection.opened.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                if busy:
                    return

        try:
            await self._ask("checkpoint", shorten, connection)
        finally:
            connection.detach()

    def _flush(self) -> None:
        self._durability.flush(self._connection.opened)

    def call(self, unit: Callable[..., T], *parameters: Any) -> T:
        """Run a function in a transaction, from any thread, and block until it is done."""
        request = Request[T](self._loop, lambda work, _: [unit(work, *parameters)], (None,))
        done = threading.Event()

        def run() -> None:
            try:
                self._write([request])
            finally:
                done.set()

        self._connection.post(run)
        done.wait()
        return request.result()[0]

    async def _ask(self, name: str, function: Callable[[], T], connection: SQLiteConnection) -> T:
        """Call a function in a connection's thread and return what it returns."""
        request = Request[T](self._loop, list, ())

        def run() -> None:
            try:
                request.answers = [retrying(function, BUSY_SECONDS)]
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                request.error = translate_error(name, self._path, error)
            self._waker.post(request.wake)

        connection.post(run)
        await request.wait()
        return request.result()[0]

    def _read(
        self, connection: SQLiteConnection, unit: Callable[..., T], parameters: tuple[Any, ...]
    ) -> T:
        if connection is self._connection:
            return unit(SQLiteTransaction(self._usable(), self._clock.now()), *parameters)
        try:
            self._store.check()
        except BackendError:
            if self._store.is_replaced():
                connection.drop()
                self._connection.post(self._try_to_move)
            raise
        if not connection.is_open and not connection.is_closed:
            connection.attach()
        try:
            return unit(SQLiteTransaction(connection.opened, self._clock.now()), *parameters)
        except SitqError:
            raise
        except BaseException as error:
            if not (isinstance(error, sqlite3.Error) and is_busy(error)):
                connection.drop()  # it may hold a read lock; the next read opens a new one
            raise

    def _write(self, batch: list[Request[Any]]) -> None:
        """Run requests in one transaction; one that fails does not fail the others."""
        operations = [request.operation for request in batch]
        try:
            work, _ = retrying(
                partial(self._transaction, operations, run_batch, batch),
                BUSY_SECONDS,
            )
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            for request in batch:
                request.answers = None
            if len(batch) == 1 or is_shared(error):
                for request in batch:
                    request.error = translate_error(name_of(request), self._path, error)
            else:
                for request in batch:
                    self._write([request])
            return
        self._publish(work)

    def _publish(self, work: SQLiteTransaction) -> None:
        """Wake those that wait for the changes of a transaction."""
        try:
            self._committed(work)
        except Exception as error:  # noqa: BLE001 - the transaction is committed all the same
            _log.error("%s: cannot wake others after a commit", self._path, error=error)

    def _needs_disk(self, request: Request[Any]) -> bool:
        return self._durability.needs_flush(request.operation)

    def _keep(self, batch: list[Request[Any]]) -> None:
        """Flush before requests are acknowledged; each gets an error if that fails."""
        failure = self._durability.flush_for_long(self._connection)
        if failure is not None:
            for request in batch:
                request.error = unknown(name_of(request), self._path, failure)

    def _transaction(
        self,
        operations: Sequence[Callable[..., Any]],
        carry_out: Callable[..., T],
        *parameters: Any,
    ) -> tuple[SQLiteTransaction, T]:
        """Call a function in a transaction; return the transaction and the function's result."""
        connection = self._ready()
        self._durability.prepare(connection, operations)
        changes = connection.total_changes
        is_ending = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            work = SQLiteTransaction(connection, self._clock.now())
            answers = carry_out(work, *parameters)
            changed = connection.total_changes != changes
            is_ending = True
            connection.execute("COMMIT")
        except BaseException as error:
            self._take_back(operations[0].__name__, connection, error, is_ending=is_ending)
            raise
        self._durability.committed(changed=changed)
        return work, answers

    def _take_back(
        self,
        name: str,
        connection: sqlite3.Connection,
        error: BaseException,
        *,
        is_ending: bool,
    ) -> None:
        """Roll back a transaction that failed.

        Raises:
            UnknownOutcomeError: it may be committed.
        """
        if connection.in_transaction:
            if not roll_back(connection):
                self._replace()
        elif is_ending and not is_undone(error):
            self._durability.doubt()
            raise unknown(name, self._path, error)

    def _ready(self) -> sqlite3.Connection:
        """Return the connection for writes, to the file that is at the path now.

        Raises:
            UsageError: the connection is closed.
            BackendError: there is no store, or it cannot be used.
        """
        try:
            connection = self._usable()
            self._store.check()
        except BackendError:
            if not self._store.is_replaced():
                raise
            self._move()
            return self._connection.opened
        if self._store.renew_wakeup_file():
            self._moved()
        return connection

    def _move(self) -> None:
        """Open the file that has replaced the store's file."""
        if self._connection.is_open:
            self._store.finish(self._connection.opened)
            self._connection.drop()
        reader = self._reader
        if reader is not None:
            reader.post(reader.drop)
        self._durability.renew()
        self._connection.attach(self._store.move)
        self._moved()

    def _try_to_move(self) -> None:
        with suppress(BackendError, UsageError, sqlite3.Error, OSError):
            retrying(self._ready, BUSY_SECONDS)

    def _usable(self) -> sqlite3.Connection:
        """Return the connection for writes, with no transaction open on it.

        Raises:
            UsageError: the connection is closed.
            BackendError: it cannot be used, and no other one can be opened.
        """
        if self._connection.is_open:
            if roll_back(self._connection.opened):
                return self._connection.opened
            self._replace()
        if not self._connection.is_open and not self._connection.is_closed:
            self._connection.attach(self._store.reconnect)
        return self._connection.opened

    def _replace(self) -> None:
        """Close a connection that cannot be rolled back, which releases its locks."""
        if not self._store.is_file:
            return  # the tasks of a store in memory would be lost
        self._connection.drop()
        self._store.disconnected()
        self._durability.renew()
