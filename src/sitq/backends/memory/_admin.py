"""What each verb of administration does to the rows of the reference store; see ``_operations``."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sitq.administration import BulkChange, Count, TaskPage, WorkerOrders, WorkerState
from sitq.backends._cursors import IN_RESERVATION_ORDER, decode_cursor, encode_cursor
from sitq.backends._overview import (
    COUNT_CAP,
    HEAD,
    OverviewParts,
    capped,
    make_overview,
    make_worker,
)
from sitq.backends._task_filters import partition_tasks
from sitq.backends.memory._operations import enqueue_one
from sitq.errors import BackendError
from sitq.models import TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sitq.administration import (
        BulkResult,
        FailedAttempt,
        Overview,
        QueuePause,
        TaskChange,
        TaskFilter,
        WorkerInfo,
        WorkerReport,
    )
    from sitq.backends._task_filters import ChangeRequest, RetryRequest
    from sitq.backends.memory._operations import Rows
    from sitq.backends.memory._rows import TaskRow
    from sitq.ids import TaskId
    from sitq.models import Task

__all__ = [
    "change_tasks",
    "count_tasks",
    "deregister",
    "get_attempts",
    "list_pauses",
    "list_tasks",
    "list_workers",
    "load_tasks",
    "order_worker",
    "overview",
    "pause_queue",
    "replace_task",
    "report",
    "resume_queue",
    "retry_tasks",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# -- tasks -----------------------------------------------------------------------------------


def list_tasks(
    rows: Rows, now: datetime, where: TaskFilter, limit: int, cursor: str | None
) -> TaskPage:
    page, cursor = _page(rows, now, where, limit, cursor)
    return TaskPage(tuple(row.to(TaskInfo) for row in page), cursor, None)


def count_tasks(rows: Rows, now: datetime, where: TaskFilter, most: int, seconds: float) -> Count:
    del seconds
    number = sum(_matches(row, where, now) for row in rows.by_id.values())
    return capped(number, most, now)


def change_tasks(rows: Rows, now: datetime, request: ChangeRequest) -> BulkResult:
    page, cursor = _page(rows, now, request.where, request.limit, request.cursor)
    infos = [row.to(TaskInfo) for row in page]
    accepted, result = partition_tasks(infos, request.change, cursor)
    for info in () if request.dry_run else accepted:
        row = rows.by_id[info.task_id]
        changed = _changed(row, request.change, now)
        if changed is None:
            rows.remove([row])
        else:
            rows.put(changed)
        if changed is not None and changed.cancel_requested:
            rows.changed.add("cancels")
    return result


def replace_task(rows: Rows, now: datetime, task: Task) -> bool:
    row = rows.by_id.get(task.id)
    if row is None or not row.is_pending:
        return False
    stored = row.task.model_copy(update={"payload": task.payload})
    rows.put(replace(row, task=stored, eta=task.eta or now))
    rows.changed.add("tasks")
    return True


def load_tasks(rows: Rows, _now: datetime, task_ids: Sequence[TaskId[Any]]) -> list[Task | None]:
    found = map(rows.by_id.get, task_ids)
    return [None if row is None else row.as_task() for row in found]


def retry_tasks(rows: Rows, now: datetime, request: RetryRequest) -> list[TaskId[Any] | None]:
    before = dict(rows.by_id)
    try:
        return [_repeat(rows, now, repeat, again=request.again) for repeat in request.repeats]
    except BackendError:
        rows.by_id = before
        rows.changed.clear()
        raise


def _repeat(rows: Rows, now: datetime, repeat: Task, *, again: bool) -> TaskId[Any] | None:
    old = rows.by_id.get(repeat.retry_of) if repeat.retry_of is not None else None
    if old is None or not old.status.is_final or (old.retried_as is not None and not again):
        return None
    new = enqueue_one(rows, now, repeat)
    rows.put(replace(rows.by_id[old.task.id], retried_as=new))
    return new


def get_attempts(rows: Rows, _now: datetime, task_id: TaskId[Any]) -> list[FailedAttempt]:
    return list(rows.known(task_id).failures)


# -- queues and workers ----------------------------------------------------------------------


def pause_queue(rows: Rows, now: datetime, pause: QueuePause) -> None:
    rows.pauses[pause.queue] = pause.model_copy(update={"at": now})
    rows.changed.add("cancels")


def resume_queue(rows: Rows, now: datetime, queue: str) -> bool:
    was_paused = queue in rows.paused(now)
    rows.pauses.pop(queue, None)
    if was_paused:
        rows.changed.add("tasks")
    return was_paused


def list_pauses(rows: Rows, now: datetime) -> list[QueuePause]:
    paused = rows.paused(now)
    return [paused[name] for name in sorted(paused)]


def list_workers(rows: Rows, now: datetime) -> list[WorkerInfo]:
    found = []
    for reported, seen_at in rows.workers.values():
        tasks = [row.task.id for row in rows.by_id.values() if row.worker == reported.id]
        found.append(make_worker(vars(reported), seen_at, tasks, now))
    return sorted(found, key=lambda worker: (worker.host, worker.pid, worker.id))


def order_worker(rows: Rows, _now: datetime, worker_id: str, state: WorkerState) -> bool:
    if worker_id not in rows.workers:
        return False
    rows.orders[worker_id] = state
    rows.changed.add("cancels")
    return True


def report(rows: Rows, now: datetime, worker: WorkerReport) -> WorkerOrders:
    rows.workers[worker.id] = (worker, now)
    state = rows.orders.get(worker.id, WorkerState.ACTIVE)
    return WorkerOrders(state, frozenset(rows.paused(now)))


def deregister(rows: Rows, _now: datetime, worker_id: str) -> None:
    rows.forget_worker(worker_id)


def overview(rows: Rows, now: datetime) -> Overview:
    parts = _count_parts(rows.by_id.values(), now)
    return make_overview(parts, list_workers(rows, now), list_pauses(rows, now), now)


# -- what they are made of -------------------------------------------------------------------


def _matches(row: TaskRow, where: TaskFilter, now: datetime) -> bool:
    """Return whether a filter means a task."""
    task = row.task
    exact = (
        (where.queue, task.queue),
        (where.function, task.function),
        (where.priority, task.priority),
        (where.worker, row.worker),
        (where.unique_key, task.unique_key),
        (where.retry_of, task.retry_of),
    )
    between = (
        (where.enqueued_after, where.enqueued_before, row.enqueued_at),
        (where.finished_after, where.finished_before, row.finished_at),
        (where.eta_after, where.eta_before, row.eta),
    )
    return (
        (where.ids is None or task.id in where.ids)
        and (where.status is None or _has_status(row, where.status, now))
        and all(wanted is None or wanted == found for wanted, found in exact)
        and (where.error is None or (row.error or "").partition(":")[0] == where.error)
        and all(
            (first is None or (moment is not None and first <= moment))
            and (last is None or (moment is not None and moment < last))
            for first, last, moment in between
        )
    )


def _has_status(row: TaskRow, status: str, now: datetime) -> bool:
    match status:
        case "scheduled":
            return row.status is TaskStatus.PENDING and row.eta > now
        case "due":
            return row.status is TaskStatus.PENDING and row.eta <= now
        case "retrying":
            return row.status is TaskStatus.PENDING and row.attempts > 0
        case _:
            return row.status == status


def _page(
    rows: Rows, now: datetime, where: TaskFilter, limit: int, cursor: str | None
) -> tuple[list[TaskRow], str | None]:
    """Return the rows of one page, and the cursor of the next."""
    matching = (row for row in rows.by_id.values() if _matches(row, where, now))
    found = sorted(matching, key=lambda row: row.task.id)
    found.reverse()
    if where.status in IN_RESERVATION_ORDER:
        found.sort(key=lambda row: (row.task.queue, *row.order))
    if cursor is not None:
        last = decode_cursor(where, cursor)
        found = [row for row in found if _is_after(row, where, last)]
    page = found[:limit]
    more = len(found) > limit
    return page, encode_cursor(where, _keys(page[-1], where)) if more else None


def _keys(row: TaskRow, where: TaskFilter) -> list[str | int]:
    if where.status not in IN_RESERVATION_ORDER:
        return [row.task.id]
    eta = (row.eta - _EPOCH) // timedelta(microseconds=1)
    return [row.task.queue, row.task.priority, eta, row.number]


def _is_after(row: TaskRow, where: TaskFilter, last: list[Any]) -> bool:
    keys = _keys(row, where)
    if len(keys) == 1:
        return bool(keys[0] < last[0])
    (queue, priority, *rest), (last_queue, last_priority, *last_rest) = keys, last
    return (queue, -int(priority), *rest) > (last_queue, -last_priority, *last_rest)


def _changed(row: TaskRow, change: TaskChange, now: datetime) -> TaskRow | None:
    """Return a row after a change that is not refused; ``None``: it is deleted."""
    match change.kind:
        case BulkChange.DELETE:
            return None
        case BulkChange.CANCEL if row.status is TaskStatus.PENDING:
            return row.ended(TaskStatus.CANCELLED, now)
        case BulkChange.CANCEL:
            return replace(row, cancel_requested=True, key_released=True)
        case BulkChange.POSTPONE:
            return replace(row, eta=change.eta or row.eta)
        case BulkChange.SET_PRIORITY:
            priority = row.task.priority if change.priority is None else change.priority
            return replace(row, task=row.task.model_copy(update={"priority": priority}))


def _count_parts(rows: Iterable[TaskRow], now: datetime) -> OverviewParts:
    """Count what an overview shows."""
    parts = OverviewParts()
    number = {"retrying": 0, "failed": 0}
    due: defaultdict[str, list[TaskRow]] = defaultdict(list)
    # The other stores look at so many tasks of each queue and priority too.
    levels: defaultdict[tuple[str, int, bool], list[TaskRow]] = defaultdict(list)
    for row in rows:
        queue = row.task.queue
        if _has_status(row, "due", now):
            due[queue].append(row)
            levels[queue, row.task.priority, False].append(row)
        if _has_status(row, "scheduled", now):
            parts.scheduled[queue] += 1
            levels[queue, row.task.priority, True].append(row)
        if row.status is TaskStatus.IN_PROGRESS:
            parts.running[queue] = parts.running.get(queue, 0) + 1
        number["retrying"] += _has_status(row, "retrying", now)
        number["failed"] += row.status is TaskStatus.FAILED
    for queue, waiting in due.items():
        parts.due[queue] = len(waiting)
        parts.oldest[queue] = (now - min(row.eta for row in waiting)).total_seconds()
    for (queue, _, is_scheduled), waiting in levels.items():
        waiting.sort(key=lambda row: row.order)
        parts.heads |= {
            (queue, row.task.function)
            for row in waiting[:HEAD]
            if row.unknown_function_count or not is_scheduled
        }
    for status, found in number.items():
        parts.searched[status] = capped(found, COUNT_CAP, now)
    return parts
