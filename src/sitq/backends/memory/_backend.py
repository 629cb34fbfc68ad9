"""`MemoryBackend`: the rules of a store, in plain dicts."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from sitq._loops import LoopRef
from sitq.backends._open_counter import OpenCounter
from sitq.backends.memory._rows import (
    TaskRow,
    after,
    delete_at,
    reached,
    reclaimed,
    to_info,
    to_reserved,
    to_result,
)
from sitq.clock import checked_clock
from sitq.errors import BackendError, TaskNotFoundError
from sitq.models import ALL_QUEUES, LeaseState, Reservation
from sitq.protocols import Sweep
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import Lease, Outcome, Progress, ReservedTask, Result, Task, TaskInfo
    from sitq.protocols import Clock, LeaseKeeper, Listener, Topic

__all__ = ["MemoryBackend"]


class MemoryBackend:
    """A store in the memory of one process, for tests and for tasks that may be lost.

    What it holds outlives `close`, but not the instance.

    Args:
        clock: the clock to judge by; the system's unless given.

    Raises:
        ValidationError: ``clock`` is not a clock.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Final = checked_clock(clock)
        self._rows: dict[TaskId[Any], TaskRow] = {}
        self._stored = 0
        self._listeners: dict[Topic, set[_MemoryListener]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }
        # A lease keeper calls from its own thread.
        self._lock = threading.Lock()
        self._open_counter = OpenCounter(
            self.__repr__, partial(_Session, self._listeners), "each has tasks of its own"
        )

    def __repr__(self) -> str:
        return f"MemoryBackend(<{len(self._rows)} tasks>)"

    @property
    def clock(self) -> Clock:
        """The clock that the store's users share."""
        return self._clock

    async def open(self) -> None:
        """Count a user in.

        Raises:
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        await self._open_counter.enter()

    async def close(self) -> None:
        """Count a user out.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        await self._open_counter.leave()

    async def _checked(self) -> datetime:
        """Be a checkpoint, as every store's operations are; return the moment to judge by."""
        self._open_counter.use()
        await anyio.lowlevel.checkpoint()
        return self._clock.now()

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.Backend.enqueue`."""
        now = await self._checked()
        with self._lock:
            rows = dict(self._rows)
            expired: list[TaskRow] = []
            ids = [self._store(rows, task, now, expired) for task in tasks]
            self._rows = rows
        self._changed("tasks", tasks)
        self._changed("results", expired)
        return ids

    def _store(
        self, rows: dict[TaskId[Any], TaskRow], task: Task, now: datetime, expired: list[TaskRow]
    ) -> TaskId[Any]:
        key = task.unique_key
        holder = key and next((row for row in rows.values() if row.holds(key)), None)
        if holder:
            if holder.task.id == task.id or not holder.can_never_start(now):
                return holder.task.id
            if holder.status is TaskStatus.PENDING and holder.is_expired(now):
                rows[holder.task.id] = holder.ended(TaskStatus.EXPIRED, now)
                expired.append(holder)
            else:
                rows[holder.task.id] = replace(holder, key_released=True)
        if task.id in rows:
            raise BackendError(f"enqueue: the id {task.id} is in use")
        self._stored += 1
        rows[task.id] = TaskRow(task, self._stored, task.eta or now, now)
        return task.id

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """See `sitq.protocols.Backend.reserve`."""
        del worker
        now = await self._checked()
        every = tuple(queues) == ALL_QUEUES
        with self._lock:
            mine = [
                row
                for row in self._rows.values()
                if (every or row.task.queue in queues)
                and row.status is TaskStatus.PENDING
                and not row.is_expired(now)
            ]
            due = sorted((row for row in mine if row.is_due(now)), key=lambda row: row.order)
            reserved = [self._reserve(row, now, lease) for row in due[:limit]]
        if len(due) > limit:
            return Reservation(tuple(reserved), 0.0)
        later = [row.eta for row in mine if row.eta > now]
        wait = (min(later) - now) / timedelta(seconds=1) if later else None
        return Reservation(tuple(reserved), wait)

    def _reserve(self, row: TaskRow, now: datetime, lease: float) -> ReservedTask:
        row = self._put(
            replace(
                row,
                status=TaskStatus.IN_PROGRESS,
                epoch=row.epoch + 1,
                attempts=row.attempts + 1,
                started_at=now,
                lease_end=now + timedelta(seconds=lease),
            )
        )
        return to_reserved(row)

    def _put(self, row: TaskRow) -> TaskRow:
        self._rows[row.task.id] = row
        return row

    def _current(self, lease: Lease) -> TaskRow | None:
        """The row of a lease that is still the current one."""
        row = self._rows.get(lease.task_id)
        if row is None or row.status is not TaskStatus.IN_PROGRESS or row.epoch != lease.epoch:
            return None
        return row

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """See `sitq.protocols.Backend.finish`."""
        now = await self._checked()
        ends: list[TaskRow | None] = []
        with self._lock:
            for outcome in outcomes:
                row = self._current(outcome.lease)
                ends.append(row and self._put(after(row, outcome, now)))
        self._changed("tasks", [row for row in ends if row and not row.status.is_final])
        self._changed("results", [row for row in ends if row and row.status.is_final])
        return [row is not None for row in ends]

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        asked_at = self._clock.now()
        now = min(await self._checked(), asked_at)
        with self._lock:
            lost = self._first(limit, lambda row: reached(row.lease_end, now))
            for row in lost:
                self._put(reclaimed(row, max_crashes, now))
            expired = self._first(
                limit,
                lambda row: (
                    row.task.expires_at
                    if row.status is TaskStatus.PENDING and row.is_expired(now)
                    else None
                ),
            )
            for row in expired:
                self._put(row.ended(TaskStatus.EXPIRED, now))
            over = self._first(limit, lambda row: reached(delete_at(row), now))
            for row in over:
                del self._rows[row.task.id]
        self._changed("tasks", lost)
        self._changed("results", lost + expired)
        return Sweep(len(lost), len(expired), len(over))

    def _first(self, limit: int, when: Callable[[TaskRow], datetime | None]) -> list[TaskRow]:
        """The rows that have such a moment, the earliest first."""
        found = [
            (moment, row.number, row)
            for row in self._rows.values()
            if (moment := when(row)) is not None
        ]
        return [row for _, _, row in sorted(found, key=lambda entry: entry[:2])[:limit]]

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """See `sitq.protocols.Backend.prune`."""
        before = await self._checked() - timedelta(seconds=older_than)
        with self._lock:
            old = self._first(limit, lambda row: reached(row.finished_at, before))
            for row in old:
                del self._rows[row.task.id]
        return len(old)

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """See `sitq.protocols.Backend.cancel`."""
        now = await self._checked()
        with self._lock:
            row = self._known(task_id)
            if row.status is TaskStatus.PENDING:
                self._put(row.ended(TaskStatus.CANCELLED, now))
            elif row.status is TaskStatus.IN_PROGRESS:
                self._put(replace(row, cancel_requested=True, key_released=True))
        if row.status.is_final:
            return False
        self._changed("results" if row.status is TaskStatus.PENDING else "cancels", [row])
        return True

    def _known(self, task_id: TaskId[Any]) -> TaskRow:
        try:
            return self._rows[task_id]
        except KeyError:
            raise TaskNotFoundError(f"no task has the id {task_id}") from None

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """See `sitq.protocols.Backend.set_progress`."""
        await self._checked()
        with self._lock:
            row = self._current(lease)
            if row is not None:
                self._put(replace(row, progress=progress))
        return row is not None

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """See `sitq.protocols.Backend.get_tasks`."""
        await self._checked()
        rows = [self._rows.get(task_id) for task_id in task_ids]
        return [None if row is None else to_info(row) for row in rows]

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """See `sitq.protocols.Backend.get_results`."""
        await self._checked()
        return {
            task_id: to_result(self._rows[task_id]) for task_id in task_ids if task_id in self._rows
        }

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """See `sitq.protocols.Backend.load_task`."""
        await self._checked()
        row = self._known(task_id)
        return row.task.model_copy(update={"eta": row.eta})

    def _changed(self, topic: Topic, what: Sequence[object]) -> None:
        if what:
            for listener in self._listeners[topic]:
                listener.changed.set()

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        self._open_counter.use()
        listener = _MemoryListener()
        self._listeners[topic].add(listener)
        try:
            yield listener
        finally:
            self._listeners[topic].discard(listener)

    def lease_keeper(self) -> LeaseKeeper:
        """See `sitq.protocols.Backend.lease_keeper`."""
        self._open_counter.use_from_thread()
        return _Keeper(self)

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        end = self._clock.now() + timedelta(seconds=seconds)
        states = []
        with self._lock:
            for lease in leases:
                row = self._current(lease)
                if row is None:
                    states.append(LeaseState.LOST)
                    continue
                self._put(replace(row, lease_end=end))
                asked = LeaseState.CANCEL_REQUESTED if row.cancel_requested else LeaseState.HELD
                states.append(asked)
        return states


class _Session:
    """What is open: the listeners, which belong to one event loop."""

    def __init__(self, listeners: dict[Topic, set[_MemoryListener]], loop: LoopRef) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self._listeners = listeners

    async def connect(self) -> None:
        """Forget the listeners of another loop, which ended: nothing can wake them."""
        for topic, listeners in self._listeners.items():
            self._listeners[topic] = {each for each in listeners if each.loop == self.loop}

    async def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _MemoryListener:
    def __init__(self) -> None:
        self.loop = LoopRef()
        self.changed = anyio.Event()

    async def wait(self) -> None:
        await self.changed.wait()
        self.changed = anyio.Event()


class _Keeper:
    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        return self._backend.renew(leases, seconds)

    def close(self) -> None:
        pass
