"""What each verb does to the rows of the reference store.

Each is a function of the rows and the moment to judge by, called under the store's lock, so that
it is atomic.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sitq.backends.memory._rows import TaskRow
from sitq.errors import BackendError, TaskNotFoundError
from sitq.models import ALL_QUEUES, LeaseState, Reservation, ReservedTask, Result, TaskInfo
from sitq.protocols import Sweep
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sitq.administration import QueuePause, WorkerReport, WorkerState
    from sitq.ids import TaskId
    from sitq.models import Lease, Outcome, Progress, Task
    from sitq.protocols import Topic

__all__ = [
    "Rows",
    "cancel",
    "enqueue",
    "enqueue_one",
    "finish",
    "get_results",
    "get_tasks",
    "load_task",
    "prune",
    "renew",
    "reserve",
    "set_progress",
    "sweep",
]


# A worker that has not reported for so long is removed.
_WORKER_TTL = timedelta(hours=1)


@dataclass
class Rows:
    """The rows by the ids of their tasks, and the topics that an operation has changed."""

    by_id: dict[TaskId[Any], TaskRow] = field(default_factory=dict)
    stored: int = 0
    pauses: dict[str, QueuePause] = field(default_factory=dict)
    # What each worker reported, and when; what it was asked to be.
    workers: dict[str, tuple[WorkerReport, datetime]] = field(default_factory=dict)
    orders: dict[str, WorkerState] = field(default_factory=dict)
    changed: set[Topic] = field(default_factory=set)

    def put(self, row: TaskRow) -> TaskRow:
        """Store a row in place of the one before it, and note whom its new status concerns."""
        before = self.by_id.get(row.task.id)
        self.by_id[row.task.id] = row
        if before is None or before.status is not row.status:
            if row.is_pending:
                self.changed.add("tasks")
            elif row.status.is_final:
                self.changed.add("results")
        return row

    def current(self, lease: Lease) -> TaskRow | None:
        """Return the row of a lease that is still the current one."""
        row = self.by_id.get(lease.task_id)
        if row is None or row.status is not TaskStatus.IN_PROGRESS or row.epoch != lease.epoch:
            return None
        return row

    def known(self, task_id: TaskId[Any]) -> TaskRow:
        """Return the row of an id that exists."""
        try:
            return self.by_id[task_id]
        except KeyError:
            raise TaskNotFoundError(f"no task has the id {task_id}") from None

    def paused(self, now: datetime) -> dict[str, QueuePause]:
        """Return the pauses that have not ended, by queue."""
        return {
            name: pause
            for name, pause in self.pauses.items()
            if pause.until is None or pause.until > now
        }

    def reached(
        self, limit: int, now: datetime, when: Callable[[TaskRow], datetime | None]
    ) -> list[TaskRow]:
        """Return the rows that have such a moment, not later than now, the earliest first."""
        found = [
            (moment, row.number, row)
            for row in self.by_id.values()
            if (moment := when(row)) is not None and moment <= now
        ]
        return [row for _, _, row in sorted(found, key=lambda entry: entry[:2])[:limit]]

    def forget_worker(self, worker_id: str) -> None:
        """Remove a worker and its orders."""
        self.workers.pop(worker_id, None)
        self.orders.pop(worker_id, None)

    def remove(self, rows: list[TaskRow]) -> int:
        """Remove rows; return how many."""
        for row in rows:
            del self.by_id[row.task.id]
        return len(rows)


def enqueue(rows: Rows, now: datetime, tasks: Sequence[Task]) -> list[TaskId[Any]]:
    before = dict(rows.by_id)
    try:
        return [enqueue_one(rows, now, task) for task in tasks]
    except BackendError:
        rows.by_id = before
        rows.changed.clear()
        raise


def enqueue_one(rows: Rows, now: datetime, task: Task) -> TaskId[Any]:
    key = task.unique_key
    holder = key and next((row for row in rows.by_id.values() if row.holds(key)), None)
    if holder:
        if holder.task.id == task.id or not holder.can_never_start(now):
            return holder.task.id
        if holder.expires_at and holder.is_expired(now):
            rows.put(holder.ended(TaskStatus.EXPIRED, now))
        else:
            rows.put(replace(holder, key_released=True))
    if task.id in rows.by_id:
        raise BackendError(f"enqueue: the id {task.id} is in use")
    rows.stored += 1
    rows.put(TaskRow(task, rows.stored, task.eta or now, now))
    return task.id


def reserve(
    rows: Rows, now: datetime, worker: str, queues: Sequence[str], limit: int, lease: float
) -> Reservation:
    every = tuple(queues) == ALL_QUEUES
    paused = rows.paused(now)
    mine = [
        row
        for row in rows.by_id.values()
        if row.is_pending and not row.is_expired(now) and (every or row.task.queue in queues)
    ]
    due = sorted(
        (row for row in mine if row.is_due(now) and row.task.queue not in paused),
        key=lambda row: row.order,
    )
    end = now + timedelta(seconds=lease)
    reserved = tuple(
        rows.put(row.reserved(worker, now, end)).to(ReservedTask) for row in due[:limit]
    )
    if len(due) > limit:
        return Reservation(reserved, 0.0)
    starts = [_start_of(row, paused.get(row.task.queue)) for row in mine]
    later = [start for start in starts if start is not None and start > now]
    return Reservation(reserved, (min(later) - now) / timedelta(seconds=1) if later else None)


def _start_of(row: TaskRow, pause: QueuePause | None) -> datetime | None:
    """Return from when on a pending task may start; ``None``: its queue's pause has no end."""
    if pause is None:
        return row.eta
    return None if pause.until is None else max(row.eta, pause.until)


def finish(rows: Rows, now: datetime, outcomes: Sequence[Outcome]) -> list[bool]:
    accepted = []
    for outcome in outcomes:
        row = rows.current(outcome.lease)
        if row is not None:
            rows.put(row.after(outcome, now))
        accepted.append(row is not None)
    return accepted


def sweep(rows: Rows, now: datetime, max_crashes: int, limit: int) -> Sweep:
    lost = rows.reached(limit, now, lambda row: row.lease_end)
    for row in lost:
        rows.put(row.reclaimed(max_crashes, now))
    expired = rows.reached(limit, now, lambda row: row.expires_at)
    for row in expired:
        rows.put(row.ended(TaskStatus.EXPIRED, now))
    old = rows.reached(limit, now, lambda row: row.delete_at)
    for worker_id, (_, seen_at) in list(rows.workers.items()):
        if now - seen_at > _WORKER_TTL:
            rows.forget_worker(worker_id)
    return Sweep(len(lost), len(expired), rows.remove(old))


def prune(rows: Rows, now: datetime, older_than: float, limit: int) -> int:
    before = now - timedelta(seconds=older_than)
    return rows.remove(rows.reached(limit, before, lambda row: row.finished_at))


def cancel(rows: Rows, now: datetime, task_id: TaskId[Any]) -> bool:
    row = rows.known(task_id)
    if row.is_pending:
        rows.put(row.ended(TaskStatus.CANCELLED, now))
    elif row.status is TaskStatus.IN_PROGRESS:
        rows.put(replace(row, cancel_requested=True, key_released=True))
        rows.changed.add("cancels")
    return not row.status.is_final


def set_progress(rows: Rows, _now: datetime, lease: Lease, progress: Progress) -> bool:
    row = rows.current(lease)
    if row is not None:
        rows.put(replace(row, progress=progress))
    return row is not None


def get_tasks(rows: Rows, _now: datetime, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
    found = map(rows.by_id.get, task_ids)
    return [None if row is None else row.to(TaskInfo) for row in found]


def get_results(
    rows: Rows, _now: datetime, task_ids: Sequence[TaskId[Any]]
) -> Mapping[TaskId[Any], Result[Any] | None]:
    found = map(rows.by_id.get, task_ids)
    return {
        row.task.id: row.to(Result) if row.status.is_final else None
        for row in found
        if row is not None
    }


def load_task(rows: Rows, _now: datetime, task_id: TaskId[Any]) -> Task:
    return rows.known(task_id).as_task()


def renew(rows: Rows, now: datetime, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
    states = []
    for lease in leases:
        row = rows.current(lease)
        if row is None:
            states.append(LeaseState.LOST)
            continue
        rows.put(replace(row, lease_end=now + timedelta(seconds=seconds)))
        held = LeaseState.CANCEL_REQUESTED if row.cancel_requested else LeaseState.HELD
        states.append(held)
    return states
