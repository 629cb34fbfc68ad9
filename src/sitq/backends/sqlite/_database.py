"""Run the operations of one SQLite store for the callers of one event loop.

Writes that wait at the same time share a transaction. Reads run one by one, in a thread and on a
connection of their own, so that they do not wait for a write that waits for the lock of another
process.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sitq.backends._batch_queue import BatchQueue, BlockingRequest, Request, wake_all
from sitq.backends.sqlite._connection import SQLiteConnection
from sitq.backends.sqlite._errors import BUSY_SECONDS, is_busy, retrying, translate_error
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.errors import BackendError, SitqError, UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._file import DatabaseFile
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.backends.sqlite._store_files import StoreFiles
    from sitq.backends.sqlite._writer import Writer
    from sitq.protocols import Clock

__all__ = ["SQLiteDatabase"]

T = TypeVar("T")


class SQLiteDatabase(BatchQueue):
    """The requests of the callers, and the connection for reads.

    Args:
        loop: the event loop of all callers.
        waker: calls functions in that loop from the database threads.
        writer: runs batches of requests in transactions.
        store: opens connections for reads, and checks the files before each read.
        clock: read once a read.
    """

    def __init__(
        self, loop: LoopRef, waker: LoopWaker, writer: Writer, store: StoreFiles, clock: Clock
    ) -> None:
        super().__init__(loop)
        self._waker = waker
        self._writer = writer
        self._store = store
        self._clock = clock
        self._connection = writer.connection
        self._reader: SQLiteConnection | None = None
        self._read_from: DatabaseFile | None = None
        self._is_closing = False

    async def connect(self) -> None:
        """Open the connection for writes."""
        try:
            await self._ask("connect", self._connection.attach, self._connection)
        except BaseException:
            self._connection.detach()
            raise

    async def close(self) -> None:
        """Close the connections, after all earlier requests."""
        request = Request[None](self._loop, list, ())
        self._close_soon(partial(self._answer_call, request, "close", self._end))
        await request.wait()
        request.result()

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
        while self._write_batch():
            pass
        self._writer.end()

    # -- writes ------------------------------------------------------------------------------

    def write_blocking(self, operation: Callable[..., list[T]], items: Sequence[Any]) -> list[T]:
        """Run an operation in a transaction, from a thread without an event loop.

        If the connection is idle, the caller's own thread runs it.
        """
        if self._scheduled:
            self._connection.usage.refuse_nested()  # the thread would wait for itself
        else:
            run = partial(self._writer.write_alone, operation, items)
            answers = self._connection.usage.try_call(run)
            if answers is not None:
                return answers
        request = BlockingRequest[T](self._loop, operation, items)
        self.post(request)
        try:
            request.block()
        except BaseException:
            self._abandon(request)
            raise
        return request.result()

    def _begin(self) -> None:
        self._connection.post(self._flush)

    def _flush(self) -> None:
        if self._write_batch():
            # Queued behind the thread's other calls, so that reads are not starved.
            self._connection.post(self._flush)

    def _write_batch(self) -> bool:
        """Write all queued requests; return whether more have come meanwhile."""
        batch = self._take()
        try:
            self._writer.write(batch)
            early: list[Request[Any]] = []
            late: list[Request[Any]] = []
            for request in batch:
                (late if self._writer.needs_flush(request) else early).append(request)
            self._answer(early)
            if late:
                self._writer.flush_for(late)
                self._answer(late)
        except BaseException as error:  # noqa: BLE001 - its callers would wait for ever
            self._fail([request for request in batch if not request.settled], error)
        return self._more()

    def _fail(self, batch: list[Request[Any]], error: BaseException) -> None:
        for request in batch:
            message = f"the outcome is unknown: it may be stored ({type(error).__name__})"
            request.error = UnknownOutcomeError(message)
            request.error.__cause__ = error
        with suppress(Exception):
            self._answer(batch)

    def _answer(self, batch: list[Request[Any]]) -> None:
        """Wake the callers of requests that were written."""
        if not batch:
            return
        # Written first, so that the next request sees the changes undone.
        self._writer.write(self._settle(batch))
        waiting = [request for request in batch if not isinstance(request, BlockingRequest)]
        try:
            if len(waiting) < len(batch):
                wake_all([request for request in batch if isinstance(request, BlockingRequest)])
        finally:
            if waiting:
                self._waker.post(partial(wake_all, waiting))

    async def flush(self) -> None:
        """Flush what was committed and is not on the disk yet."""
        if self._writer.is_behind:
            await self._ask("flush", self._writer.flush, self._connection)

    # -- reads -------------------------------------------------------------------------------

    async def read(self, unit: Callable[..., T], *parameters: Any) -> T:
        """Run a read outside any transaction."""
        # A connection that is made while the backend is being closed would stay open.
        if not self._store.is_file or self._is_closing:
            run = partial(self._read_over_writer, unit, parameters)
            return await self._ask(unit.__name__, run, self._connection)
        if self._reader is None:
            self._reader = SQLiteConnection(self._store.connect_for_reads)
        run = partial(self._read, self._reader, unit, parameters)
        return await self._ask(unit.__name__, run, self._reader)

    def _read_over_writer(self, unit: Callable[..., T], parameters: tuple[Any, ...]) -> T:
        return unit(SQLiteTransaction(self._writer.usable(), self._clock.now()), *parameters)

    def _read(
        self, reader: SQLiteConnection, unit: Callable[..., T], parameters: tuple[Any, ...]
    ) -> T:
        try:
            self._store.file.check_same()
        except BackendError:
            if self._store.file.is_replaced():
                reader.drop()
                self._connection.post(self._writer.try_to_move)
            raise
        if self._store.file is not self._read_from:
            reader.drop()
            self._read_from = self._store.file
        connection = reader.reopened()
        try:
            return unit(SQLiteTransaction(connection, self._clock.now()), *parameters)
        except SitqError:
            raise
        except BaseException as error:
            if not (isinstance(error, sqlite3.Error) and is_busy(error)):
                reader.drop()  # it may hold a read lock; the next read opens a new one
            raise

    async def shorten_log(self) -> None:
        """Empty a long write-ahead log, if no reader needs it any more.

        This uses a connection and a thread of its own: copying the log takes long, and neither
        writes nor reads wait for it.
        """
        if not self._store.is_file or not self._store.file.log_is_long():
            return
        connection = SQLiteConnection(self._store.connect_for_reads)

        def shorten() -> None:
            opened = connection.reopened()
            for mode in ("PASSIVE", "TRUNCATE"):  # TRUNCATE blocks writers for a moment
                busy, *_ = opened.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                if busy:
                    return

        try:
            await self._ask("checkpoint", shorten, connection)
        finally:
            connection.detach()

    async def _ask(self, name: str, function: Callable[[], T], connection: SQLiteConnection) -> T:
        """Call a function in a connection's thread and return what it returns."""
        request = Request[T](self._loop, list, ())
        run = partial(retrying, function, BUSY_SECONDS)
        connection.post(partial(self._answer_call, request, name, run))
        await request.wait()
        return request.result()[0]

    def _answer_call(self, request: Request[T], name: str, function: Callable[[], T]) -> None:
        try:
            request.answers = [function()]
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            request.error = translate_error(name, self._store.path, error)
        self._waker.post(request.wake)
