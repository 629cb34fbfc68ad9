"""One store's connections: units of work go to database threads, answers back to event loops.

A unit of work runs whole in one thread: writes in transactions of what has gathered, reads alone.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._loops import nothing
from sitq.backends._batching import Request, Undo, join
from sitq.backends.sqlite._connection import Connection
from sitq.backends.sqlite._errors import is_busy, translated
from sitq.backends.sqlite._group_commit import GroupCommit, StandingRequest
from sitq.backends.sqlite._work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq._loops import LoopRef
    from sitq._mailbox import Mailbox
    from sitq.backends.sqlite._durability import Durability
    from sitq.protocols import Clock

__all__ = ["Database", "retrying"]

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.0001
_LONGEST_PAUSE: Final = 0.02


def retrying(unit: Callable[[], T], seconds: float, longest: float = _LONGEST_PAUSE) -> T:
    """Run ``unit``, again while the database is locked, for at most ``seconds``.

    The pauses are drawn at random. SQLite's own busy handler sleeps by a fixed table, which lets
    a greedy writer starve the others.
    """
    give_up = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return unit()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= give_up:
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(pause * 1.5, longest)


class Database:
    """A store's connections: writes are gathered into transactions, reads run one by one.

    Reads have a connection and a thread of their own, from the first one on: they do not wait
    for a write that waits for somebody else's lock.

    Args:
        connect: opens, checks and migrates; runs in the database thread.
        connect_again: opens once more, for reads; ``None`` if there can be one connection only.
        disconnected: called after the closing; in the database thread.
        check: raises if the store is not there any more; before each transaction.
        path: for error texts.
        loop: the loop that all callers run in.
        mail: reaches it from the database threads.
        clock: read once a transaction.
        durability: when what a transaction did is on the disk.
        prompts: the operations that may give something to those who stand by.
        committed: told of each transaction, in the database thread, before its callers are.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        connect_again: Callable[[], sqlite3.Connection] | None,
        disconnected: Callable[[], None],
        check: Callable[[], None],
        path: str,
        loop: LoopRef,
        mail: Mailbox,
        clock: Clock,
        durability: Durability,
        prompts: frozenset[Callable[..., Any]],
        committed: Callable[[Work], None],
    ) -> None:
        self._check = check
        self._path = path
        self._loop = loop
        self._mail = mail
        self._clock = clock
        self._durability = durability
        self._committed = committed
        self._connection = Connection(connect, disconnected)
        self._connect_again = connect_again
        self._reader: Connection | None = None
        self.commits: Final = GroupCommit(
            loop,
            mail,
            self._connection.post,
            self._write,
            self._needs_disk,
            self._keep,
            prompts,
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
        """Close, after all that was asked for before."""
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                await self._ask("close", reader.close_raw, reader)
            await self._ask("close", self._end, self._connection)
        finally:
            if reader is not None:
                reader.detach()
            self._connection.detach()

    def abandon(self) -> None:
        """Close soon, without waiting: the loop that waits for answers has ended."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.detach()
        self._connection.post(self._end)
        self._connection.detach()

    def _end(self) -> None:
        # What gathered behind the batch that is being written has no place in the queue yet.
        self.commits.drain()
        with suppress(OSError, sqlite3.Error):  # what it was to keep, a power cut may undo
            if self._durability.is_behind:
                self._flush()
        self._durability.close()
        self._connection.close_raw()

    async def write(
        self,
        operation: Callable[..., list[T]],
        items: Sequence[Any],
        undo: Undo[T] | None = None,
    ) -> list[T]:
        """Carry out a unit of work in a transaction, with others that wait for one."""
        return await self.commits.submit(operation, items, undo)

    async def read(self, unit: Callable[..., T], *parameters: Any) -> T:
        """Run a unit of work that changes nothing, outside any transaction."""
        connection = self._connection
        if self._connect_again is not None and connection.is_open:
            if self._reader is None:
                self._reader = Connection(self._connect_again, nothing)
            connection = self._reader
        run = partial(self._read, connection, unit, parameters)
        return await self._ask(unit.__name__, run, connection)

    async def flush(self) -> None:
        """Have on the disk what was committed without it.

        Raises:
            BackendError: the disk could not.
        """
        if self._durability.is_behind:
            await self._ask("flush", self._flush, self._connection)

    def _flush(self) -> None:
        self._durability.flush(self._connection.opened)

    def call(self, unit: Callable[..., T], *parameters: Any) -> T:
        """Run a unit of work in a transaction, from any thread, and block until it is done."""
        request = Request[T](self._loop, lambda work, _: [unit(work, *parameters)], (None,))
        done = threading.Event()

        def run() -> None:
            self._write([request])
            done.set()

        self._connection.post(run)
        done.wait()
        return request.result()[0]

    async def _ask(self, name: str, function: Callable[[], T], connection: Connection) -> T:
        """Have a connection's thread call a function, and return what it returned."""
        request = Request[T](self._loop, list, ())

        def run() -> None:
            try:
                request.answers = [retrying(function, BUSY_SECONDS)]
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                request.error = translated(name, self._path, error)
            self._mail.post(request.wake)

        connection.post(run)
        await request.wait()
        return request.result()[0]

    def _read(
        self, connection: Connection, unit: Callable[..., T], parameters: tuple[Any, ...]
    ) -> T:
        self._check()
        if connection is not self._connection and not connection.is_open:
            connection.attach()
        return unit(Work(connection.opened, self._clock.now()), *parameters)

    def _write(self, batch: list[Request[Any]]) -> None:
        """Carry out requests in one transaction; one that fails must not fail the others."""
        try:
            work = retrying(partial(self._transaction, batch), BUSY_SECONDS)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            if len(batch) == 1 or (isinstance(error, sqlite3.Error) and is_busy(error)):
                for request in batch:
                    name = getattr(request.operation, "__name__", "write")
                    request.error = translated(name, self._path, error)
            else:
                for request in batch:
                    self._write([request])
        else:
            self._committed(work)

    def _needs_disk(self, request: Request[Any]) -> bool:
        return self._durability.needs_flush(request.operation)

    def _keep(self, batch: list[Request[Any]]) -> None:
        """Have on the disk what is about to be acknowledged."""
        try:
            self._flush()
        except (OSError, sqlite3.Error) as error:
            for request in batch:
                request.error = translated(request.operation.__name__, self._path, error)

    def _transaction(self, batch: list[Request[Any]]) -> Work:
        self._check()
        connection = self._connection.opened
        self._durability.prepare(connection, [request.operation for request in batch])
        changes = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Not before the lock was had: leases count from here.
            asked_at = self._clock.monotonic()
            for request in batch:
                if isinstance(request, StandingRequest):
                    request.asked_at = asked_at
            work = Work(connection, self._clock.now())
            answers = [_carry_out(work, operation, group) for operation, group in join(batch)]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for request, answer in zip(batch, chain.from_iterable(answers), strict=True):
            request.answers = answer
        self._durability.committed(changed=connection.total_changes != changes)
        return work


def _carry_out(
    work: Work, operation: Callable[..., list[Any]], group: list[Request[Any]]
) -> list[list[Any]]:
    """One call of an operation for all requests of a group; to each its own answers."""
    answers = iter(operation(work, [item for request in group for item in request.items]))
    return [list(islice(answers, len(request.items))) for request in group]
