"""`SQLiteBackend`: tasks and results in one SQLite file."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from sitq._plain import plain
from sitq.backends._batch_queue import Request
from sitq.backends._open_counter import OpenCounter
from sitq.backends._operations import PruneRequest, ReserveRequest, SweepRequest
from sitq.backends.sqlite import _operations
from sitq.backends.sqlite._batch_writer import PendingReserveRequest
from sitq.backends.sqlite._operations import cancel, finish, reserve
from sitq.backends.sqlite._rows import to_micros
from sitq.backends.sqlite._session import SQLiteSession
from sitq.backends.sqlite._user_transaction import bind
from sitq.clock import checked_clock
from sitq.errors import BackendError, ValidationError
from sitq.models import Outcome, Reservation
from sitq.protocols import Sweep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.backends._standby import PendingReservation
    from sitq.backends.sqlite._batch_writer import BatchWriter
    from sitq.ids import TaskId
    from sitq.models import Lease, Progress, Result, Task, TaskInfo
    from sitq.protocols import Clock, LeaseKeeper, Listener, Topic
    from sitq.transactions import AnyConnection, Transaction

__all__ = ["SQLiteBackend"]


class SQLiteBackend:
    """A store in one SQLite file, shared by any number of processes of one machine.

    The file is created with mode 0600, together with ``-wal``, ``-shm`` and ``-bell`` beside it.
    ``":memory:"`` is a database private to the instance; it ends with the last `close`.

    Args:
        path: the file. Its folder must exist; symbolic links are refused.
        synchronous: ``"FULL"``: what was acknowledged also survives a power cut. ``"NORMAL"``:
            it survives the death of every process; a power cut may undo the last moments.
        clock: the clock to judge by; the system's unless given.

    Raises:
        ValidationError: a parameter is not of its type.
    """

    # A worker's loop has to let the database's thread have the interpreter now and then.
    _shares_interpreter: Final = True

    def __init__(
        self,
        path: str | os.PathLike[str] = "sitq.db",
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        clock: Clock | None = None,
    ) -> None:
        self._path: Final = _checked_path(path)
        if synchronous not in ("FULL", "NORMAL"):
            message = f"synchronous: give 'FULL' or 'NORMAL' (got {type(synchronous).__name__})"
            raise ValidationError(message)
        self._synchronous: Final = synchronous
        self._clock: Final = checked_clock(clock)
        self._open_counter: Final = OpenCounter(
            self.__repr__, self._session, "they may share the file"
        )

    def __repr__(self) -> str:
        return f"SQLiteBackend({self._path!r}, synchronous={self._synchronous!r})"

    @property
    def clock(self) -> Clock:
        """The clock that the store's users share."""
        return self._clock

    async def open(self) -> None:
        """Count a user in; the first one connects, and creates or migrates the file.

        Raises:
            BackendFormatError: the file is no store that this version can use.
            BackendConnectionError: it cannot be opened, or is not safe to use.
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        await self._open_counter.enter()

    async def close(self) -> None:
        """Count a user out; the last one disconnects."""
        await self._open_counter.leave()

    def _session(self, loop: LoopRef) -> SQLiteSession:
        return SQLiteSession(loop, self._path, self._synchronous, self._clock)

    def _use(self) -> SQLiteSession:
        """What is open, for a caller that may use it."""
        return self._open_counter.use()

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.Backend.enqueue`."""
        return (await self._use().database.write(_operations.enqueue, (tasks,)))[0]

    def enqueue_blocking(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.BlockingBackend.enqueue_blocking`."""
        database = self._open_counter.use_from_thread().database
        return database.write_blocking(_operations.enqueue, (tasks,))[0]

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """See `sitq.protocols.Backend.reserve`."""
        state = self._use()
        wish = ReserveRequest(worker, tuple(queues), limit, lease)
        compensate = partial(_hand_back, state.loop)
        return (await state.database.write(reserve, (wish,), compensate))[0]

    def reserve_on_commit(
        self,
        worker: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        listener: Listener,
        fulfilled: Callable[[], object],
    ) -> PendingReservation:
        """See `sitq.backends._standby.ReserveOnCommitBackend.reserve_on_commit`."""
        state = self._use()
        wish = ReserveRequest(worker, tuple(queues), limit, lease)
        compensate = partial(_hand_back, state.loop)
        request = PendingReserveRequest(
            state.loop, reserve, (wish,), compensate, _gives, fulfilled, listener
        )
        return _PendingReservation(state.database.commits, request)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """See `sitq.protocols.Backend.finish`."""
        return await self._use().database.write(finish, outcomes)

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        asked_at = self._clock.now()
        database = self._use().database
        with suppress(BackendError):  # it stays to be done, and what is due is due all the same
            await database.flush()
            await database.shorten_log()
        if not await database.read(_operations.sweep_is_due):
            return Sweep(0, 0, 0)
        limits = SweepRequest(max_crashes, limit, to_micros(asked_at))
        return (await database.write(_operations.sweep, (limits,)))[0]

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """See `sitq.protocols.Backend.prune`."""
        wish = PruneRequest(older_than, limit)
        return (await self._use().database.write(_operations.prune, (wish,)))[0]

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """See `sitq.protocols.Backend.cancel`."""
        return (await self._use().database.write(cancel, (task_id,)))[0]

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """See `sitq.protocols.Backend.set_progress`."""
        return (await self._use().database.write(_operations.set_progress, ((lease, progress),)))[0]

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """See `sitq.protocols.Backend.get_tasks`."""
        return await self._use().database.read(_operations.get_tasks, task_ids)

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """See `sitq.protocols.Backend.get_results`."""
        state = self._use()
        fresh = state.take_fresh(task_ids)
        return (
            await state.database.read(_operations.get_results, task_ids) if fresh is None else fresh
        )

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """See `sitq.protocols.Backend.load_task`."""
        return await self._use().database.read(_operations.load_task, task_id)

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        state = self._use()
        try:
            with state.listeners.listen(topic) as listener:
                yield listener
        finally:
            state.forget_fresh()

    def lease_keeper(self) -> LeaseKeeper:
        """See `sitq.protocols.Backend.lease_keeper`."""
        return self._open_counter.use_from_thread().lease_keeper()

    def join(self, connection: AnyConnection) -> Transaction:
        """See `sitq.transactions.TransactionalBackend.join`."""
        return bind(connection, self._path, self._open_counter.use_from_thread)


class _PendingReservation:
    """A wish for tasks; see `sitq.backends._standby.PendingReservation`."""

    def __init__(self, commits: BatchWriter, request: PendingReserveRequest[Reservation]) -> None:
        self._commits = commits
        self._request = request
        commits.stand(request)

    @property
    def asked_at(self) -> float:
        return self._request.asked_at

    async def end(self) -> Reservation | None:
        reservations = await self._commits.end(self._request)
        return None if reservations is None else reservations[0]


def _gives(reservations: list[Reservation]) -> bool:
    return any(reservation.tasks for reservation in reservations)


def _hand_back(loop: LoopRef, reservations: list[Reservation]) -> Request[bool] | None:
    """Release what was reserved for a caller that is gone."""
    outcomes = [
        Outcome.release(task.lease) for reservation in reservations for task in reservation.tasks
    ]
    return Request(loop, finish, outcomes) if outcomes else None


def _checked_path(path: str | os.PathLike[str]) -> str:
    try:
        text = plain(os.fspath(path))
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        kind = "one that no file can have" if isinstance(text, str) else type(path).__name__
        message = f"path: give the file's path as str or os.PathLike (got {kind})"
        raise ValidationError(message)
    return text
