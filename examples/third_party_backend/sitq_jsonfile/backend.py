"""`JsonFileBackend`: the methods of `sitq.Backend`, each one step under the file's lock."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from sitq import (
    BackendError,
    Clock,
    Progress,
    Result,
    Task,
    TaskId,
    TaskInfo,
    TaskNotFoundError,
    TaskStatus,
)
from sitq.clock import SystemClock
from sitq.models import ALL_QUEUES, Lease, LeaseState, Outcome, Reservation
from sitq.protocols import Listener, Sweep, Topic
from sitq_jsonfile.file import JsonFile
from sitq_jsonfile.loops import Holder
from sitq_jsonfile.rows import Row

__all__ = ["JsonFileBackend", "from_url"]

T = TypeVar("T")

LOOK_EVERY = 0.02  # seconds between two polls of the file, for changes by other processes


def from_url(url: str) -> JsonFileBackend:
    """Return the store for a URL; `sitq.connect("jsonfile:tasks.json")` calls this."""
    return JsonFileBackend(url.partition(":")[2])


class JsonFileBackend:
    """A store in one JSON file, for any number of processes of one machine."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._file = JsonFile(Path(path).absolute())
        self._clock: Clock = clock or SystemClock()
        self._holder = Holder(repr(self))

    def __repr__(self) -> str:
        return f"JsonFileBackend({str(self._file.path)!r})"

    @property
    def clock(self) -> Clock:
        return self._clock

    async def open(self) -> None:
        self._holder.enter()
        with self._file.locked():
            pass  # refuses a file of another program

    async def close(self) -> None:
        self._holder.leave()

    async def _step(self, work: Callable[[dict[str, Row], datetime], T]) -> T:
        """Do one operation, without an `await` in it, so that it cannot be cancelled halfway."""
        self._holder.check()
        await checkpoint()  # a cancellation comes here, before any change
        with self._file.locked() as rows:
            return work(rows, self._clock.now())

    # -- what changes the file ---------------------------------------------------------------

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        def work(rows: dict[str, Row], now: datetime) -> list[TaskId[Any]]:
            return [_store(rows, task, now) for task in tasks]

        return await self._step(work)

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        del worker  # this store does not record which worker has a task
        every = tuple(queues) == ALL_QUEUES

        def work(rows: dict[str, Row], now: datetime) -> Reservation:
            mine = [
                row
                for row in rows.values()
                if row.status is TaskStatus.PENDING
                and (every or row.task.queue in queues)
                and not row.has_expired(now)
            ]
            due = sorted((row for row in mine if row.eta <= now), key=lambda row: row.order)
            taken = [row.reserved(now, lease) for row in due[:limit]]
            rows.update({row.task.id: row for row in taken})
            tasks = tuple(row.as_reserved() for row in taken)
            if len(due) > limit:
                return Reservation(tasks, 0.0)
            later = min((row.eta for row in mine if row.eta > now), default=None)
            wait = None if later is None else (later - now).total_seconds()
            return Reservation(tasks, wait)

        return await self._step(work)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        def work(rows: dict[str, Row], now: datetime) -> list[bool]:
            return [_end(rows, outcome, now) for outcome in outcomes]

        return await self._step(work)

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        def work(rows: dict[str, Row], now: datetime) -> Sweep:
            lost = _first(rows, limit, now, lambda row: row.lease_end)
            rows.update({row.task.id: row.reclaimed(max_crashes, now) for row in lost})
            expired = _first(
                rows, limit, now, lambda row: row.task.expires_at if row.has_expired(now) else None
            )
            rows.update({row.task.id: row.ended(TaskStatus.EXPIRED, now) for row in expired})
            over = _first(rows, limit, now, Row.forget_at)
            for row in over:
                del rows[row.task.id]
            return Sweep(len(lost), len(expired), len(over))

        return await self._step(work)

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        def work(rows: dict[str, Row], now: datetime) -> int:
            before = now - timedelta(seconds=older_than)
            old = _first(rows, limit, before, lambda row: row.finished_at)
            for row in old:
                del rows[row.task.id]
            return len(old)

        return await self._step(work)

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        def work(rows: dict[str, Row], now: datetime) -> bool:
            row = _known(rows, task_id)
            if row.status is TaskStatus.PENDING:
                rows[task_id] = row.ended(TaskStatus.CANCELLED, now)
            elif row.status is TaskStatus.IN_PROGRESS:
                rows[task_id] = row.but(cancel_requested=True, key_released=True)
            return not row.status.is_final

        return await self._step(work)

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        return await self._step(
            lambda rows, _: _change(rows, lease, lambda row: row.but(progress=progress))
        )

    # -- what only reads it ------------------------------------------------------------------

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        return await self._step(
            lambda rows, _: [rows[each].as_info() if each in rows else None for each in task_ids]
        )

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        return await self._step(
            lambda rows, _: {each: rows[each].as_result() for each in task_ids if each in rows}
        )

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        return await self._step(lambda rows, _: _known(rows, task_id).as_task())

    # -- beside the event loop ---------------------------------------------------------------

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncGenerator[Listener, None]:
        self._holder.check()
        del topic  # all topics change the same file: a listener may wake for nothing
        yield _Listener(self._file)

    def lease_keeper(self) -> _Keeper:
        self._holder.check_open()
        return _Keeper(self._file, self._clock)


class _Listener:
    """Polls the file, which works for all processes and systems."""

    def __init__(self, file: JsonFile) -> None:
        self._file = file
        self._seen = file.version()

    async def wait(self) -> None:
        while (version := self._file.version()) == self._seen:  # noqa: ASYNC110 - there is no event
            await anyio.sleep(LOOK_EVERY)
        self._seen = version


class _Keeper:
    """Renews leases from a thread of its own: the lock of the file serves threads as well."""

    def __init__(self, file: JsonFile, clock: Clock) -> None:
        self._file = file
        self._clock = clock

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        with self._file.locked() as rows:
            end = self._clock.now() + timedelta(seconds=seconds)
            return [_renew(rows, lease, end) for lease in leases]

    def close(self) -> None:
        pass


def _store(rows: dict[str, Row], task: Task, now: datetime) -> TaskId[Any]:
    key = task.unique_key
    holder = key and next((row for row in rows.values() if row.holds(key)), None)
    if holder:
        if holder.task.id == task.id or not holder.can_never_start(now):
            return holder.task.id
        rows[holder.task.id] = holder.without_key(now)
    if task.id in rows:
        raise BackendError(f"enqueue: the id {task.id} is in use")
    number = max((row.number for row in rows.values()), default=0) + 1
    rows[task.id] = Row.new(task, number, now)
    return task.id


def _known(rows: dict[str, Row], task_id: str) -> Row:
    if task_id not in rows:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return rows[task_id]


def _current(rows: dict[str, Row], lease: Lease) -> Row | None:
    """Return the row of a lease if the epoch of the lease is the current one: the fence."""
    row = rows.get(lease.task_id)
    held = row is not None and row.status is TaskStatus.IN_PROGRESS and row.epoch == lease.epoch
    return row if held else None


def _change(rows: dict[str, Row], lease: Lease, change: Callable[[Row], Row]) -> bool:
    row = _current(rows, lease)
    if row is not None:
        rows[lease.task_id] = change(row)
    return row is not None


def _end(rows: dict[str, Row], outcome: Outcome, now: datetime) -> bool:
    return _change(rows, outcome.lease, lambda row: row.after(outcome, now))


def _renew(rows: dict[str, Row], lease: Lease, end: datetime) -> LeaseState:
    row = _current(rows, lease)
    if row is None:
        return LeaseState.LOST
    rows[lease.task_id] = row.but(lease_end=end)
    return LeaseState.CANCEL_REQUESTED if row.cancel_requested else LeaseState.HELD


def _first(
    rows: dict[str, Row], limit: int, now: datetime, when: Callable[[Row], datetime | None]
) -> list[Row]:
    """Return the due rows, the earliest first."""
    come = [
        (moment, row.number, row)
        for row in rows.values()
        if (moment := when(row)) is not None and moment <= now
    ]
    return [row for _, _, row in sorted(come, key=lambda entry: entry[:2])[:limit]]
