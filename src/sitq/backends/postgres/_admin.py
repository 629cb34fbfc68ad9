"""The operations for the administration of the PostgreSQL store; see ``_operations``."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sitq.administration import (
    BulkChange,
    BulkResult,
    Count,
    FailedAttempt,
    QueuePause,
    SkippedTask,
    TaskFilter,
    TaskPage,
    WorkerOrders,
    WorkerReport,
)
from sitq.backends._cursors import IN_RESERVATION_ORDER, decode_cursor, encode_cursor
from sitq.backends._overview import (
    COUNT_CAP,
    OverviewParts,
    make_order,
    make_overview,
    make_worker,
)
from sitq.backends._rows import INFO_FIELDS, read_rows
from sitq.backends._task_filters import MAX_SCANNED_ROWS, partition_tasks
from sitq.backends.postgres import _admin_sql, _sql
from sitq.backends.postgres._rows import (
    columns,
    finite,
    storable,
    to_attempt,
    to_listed_info,
    to_moment,
    to_pause,
    to_task,
)
from sitq.errors import TaskNotFoundError
from sitq.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sitq.administration import Overview, WorkerInfo
    from sitq.backends._operations import OrderRequest
    from sitq.backends._task_filters import ChangeRequest, RetryRequest
    from sitq.backends.postgres._admin_sql import Place
    from sitq.backends.postgres._operations import PgTransaction
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

# After all ids; before all pending tasks.
_AFTER_ALL: Final = "~"
_START: Final = ("", 2**15, None, 0)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# The ends of Python's time, in microseconds since 1970.
_FIRST_ETA: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_ETA: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_PLACE: Final = tuple(map(INFO_FIELDS.index, ("queue", "priority", "eta")))
_COUNT_SECONDS: Final = 0.05
# So many rows are counted by one statement.
_COUNT_STEP: Final = 5_000
_IN_BETWEEN: Final = "it has changed meanwhile, or another transaction holds it"

# -- lists -----------------------------------------------------------------------------------


async def list_tasks(
    transaction: PgTransaction, where: TaskFilter, limit: int, cursor: str | None
) -> TaskPage:
    """Return a page of the tasks that match."""
    if where.status in IN_RESERVATION_ORDER:
        return await _pending_page(transaction, where, limit, cursor)
    before = _AFTER_ALL if cursor is None else str(decode_cursor(where, cursor)[0])
    floor = await _floor(transaction, where, before, MAX_SCANNED_ROWS)
    sql, values = _admin_sql.id_page(where, before, floor[0] if floor else "", limit + 1)
    rows = await transaction.rows(sql, *values)
    infos = read_rows(to_listed_info, rows[:limit])
    if len(rows) > limit:
        return TaskPage(tuple(infos), encode_cursor(where, [rows[limit - 1][0]]), None)
    if floor is None:
        return TaskPage(tuple(infos), None, None)
    return TaskPage(tuple(infos), encode_cursor(where, [floor[0]]), floor[1])


async def _floor(
    transaction: PgTransaction, where: TaskFilter, before: str, bound: int
) -> tuple[str, datetime] | None:
    """Return the last row that a call looks at, its id and when it was enqueued; ``None``: all."""
    sql, values = _admin_sql.id_floor(where, before, bound)
    rows = await transaction.rows(sql, *values)
    return (rows[0][0], to_moment(rows[0][1])) if rows else None


async def _pending_page(
    transaction: PgTransaction, where: TaskFilter, limit: int, cursor: str | None
) -> TaskPage:
    after: Place = _START
    if cursor is not None:
        queue, priority, eta, seq = decode_cursor(where, cursor)
        micros = max(_FIRST_ETA, min(int(eta), _LAST_ETA))  # the cursor may be of another store
        after = str(queue), int(priority), _EPOCH + micros * _MICROSECOND, int(seq)
    now = transaction.moment
    scanned = MAX_SCANNED_ROWS if _admin_sql.is_selective(where) else limit + 1
    sql, values = _admin_sql.pending_page(now, where, after, scanned, limit + 1)
    found = await transaction.rows(sql, *values)
    infos = tuple(read_rows(to_listed_info, [row[:-1] for row in found[:limit]]))
    if len(found) > limit:
        *last_row, seq = found[limit - 1]
        return TaskPage(infos, _pending_cursor(where, last_row, seq), None)
    sql, values = _admin_sql.pending_last(now, where, after, scanned)
    rows = await transaction.rows(sql, *values)
    if not rows or rows[0][0] < scanned:
        return TaskPage(infos, None, None)
    _, queue, priority, eta, seq, enqueued_at = rows[0]
    last = encode_cursor(where, [queue, priority, (to_moment(eta) - _EPOCH) // _MICROSECOND, seq])
    return TaskPage(infos, last, to_moment(enqueued_at))


def _pending_cursor(where: TaskFilter, row: Sequence[Any], seq: int) -> str:
    queue, priority, eta = (row[place] for place in _PLACE)
    return encode_cursor(where, [queue, priority, (to_moment(eta) - _EPOCH) // _MICROSECOND, seq])


async def count_tasks(
    transaction: PgTransaction, where: TaskFilter, most: int, seconds: float
) -> Count:
    """Count the tasks that match."""
    give_up = time.monotonic() + seconds
    as_of = await _now(transaction)
    number = 0
    async for counted in _counts(transaction, where, most):
        number += counted
        if number >= most:
            return Count(most, exact=False, as_of=as_of)
        if time.monotonic() >= give_up:
            return Count(number, exact=False, as_of=as_of)
    return Count(number, exact=True, as_of=as_of)


async def _counts(transaction: PgTransaction, where: TaskFilter, most: int) -> AsyncIterator[int]:
    """Yield how many tasks match among one bounded number of rows after the other."""
    if where.status in IN_RESERVATION_ORDER:
        after: Place = _START
        now = transaction.moment
        while True:
            sql, values = _admin_sql.pending_count(now, where, after, _COUNT_STEP, most)
            yield (await transaction.rows(sql, *values))[0][0]
            sql, values = _admin_sql.pending_last(now, where, after, _COUNT_STEP)
            rows = await transaction.rows(sql, *values)
            if not rows or rows[0][0] < _COUNT_STEP:
                return
            _, queue, priority, eta, seq, _ = rows[0]
            after = queue, priority, eta, seq
    before = _AFTER_ALL
    while True:
        floor = await _floor(transaction, where, before, _COUNT_STEP)
        sql, values = _admin_sql.id_count(where, before, floor[0] if floor else "", most)
        yield (await transaction.rows(sql, *values))[0][0]
        if floor is None:
            return
        before = floor[0]


async def _now(transaction: PgTransaction) -> datetime:
    now: datetime = (await transaction.rows(_admin_sql.NOW, transaction.moment))[0][0]
    return now


# -- changes ---------------------------------------------------------------------------------


async def change_tasks(
    transaction: PgTransaction, requests: Sequence[ChangeRequest]
) -> list[BulkResult]:
    """Change the tasks that match."""
    (request,) = requests
    if request.change.eta is not None:
        change = request.change._replace(eta=finite(request.change.eta))
        request = request._replace(change=change)
    page = await list_tasks(transaction, request.where, request.limit, request.cursor)
    accepted, result = partition_tasks(page.items, request.change, page.cursor)
    if request.dry_run or not accepted:
        return [result]
    transaction.has_committed = False  # so far it has only read: an error means no change
    changed = await _change(transaction, request, [info.task_id for info in accepted])
    left = [info.task_id for info in accepted if info.task_id not in changed]
    skipped = (*result.skipped, *(SkippedTask(task_id, _IN_BETWEEN) for task_id in left))
    return [BulkResult(result.matched, len(changed), skipped, result.cursor)]


async def _change(
    transaction: PgTransaction, request: ChangeRequest, ids: list[TaskId[Any]]
) -> set[str]:
    """Change tasks, and return the ids of those that were changed."""
    change, now = request.change, transaction.moment
    if change.kind is BulkChange.CANCEL:
        rows = await transaction.rows(_admin_sql.CANCEL_TASKS, now, ids)
        transaction.changed |= {"results", "cancels"}
    elif change.kind is BulkChange.DELETE:
        rows = await transaction.rows(_admin_sql.DELETE, ids)
        transaction.changed.add("results")
    elif change.kind is BulkChange.POSTPONE:
        rows = await transaction.rows(_admin_sql.POSTPONE, now, ids, change.eta)
    else:
        rows = await transaction.rows(_admin_sql.SET_PRIORITY, now, ids, change.priority)
    return {row[0] for row in rows}


async def replace_task(transaction: PgTransaction, tasks: Sequence[Task]) -> list[bool]:
    """Give a pending task a new eta and payload."""
    (task,) = tasks
    eta = None if task.eta is None else finite(task.eta)
    rows = await transaction.rows(
        _admin_sql.REPLACE_PENDING, transaction.moment, task.id, eta, task.payload
    )
    if rows:
        transaction.changed.add("tasks")
    return [bool(rows)]


async def retry_tasks(
    transaction: PgTransaction, requests: Sequence[RetryRequest]
) -> list[list[TaskId[Any] | None] | None]:
    """Store tasks that repeat final ones; ``None`` if another transaction is in the way."""
    (request,) = requests
    rows = await transaction.rows(
        _admin_sql.REPEAT, transaction.moment, *columns(request.repeats), request.again
    )
    stored = rows[0][0]
    if stored is None:
        return [None]
    transaction.changed |= {"tasks", "results"}
    return [[None if each is None else TaskId(each) for each in stored]]


async def load_tasks(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[Task | None]:
    """Return tasks as they were enqueued."""
    rows = await transaction.rows(_admin_sql.STORED_BATCH, list(task_ids))
    tasks = {task.id: task for task in read_rows(to_task, rows)}
    return [tasks.get(task_id) for task_id in task_ids]


# -- attempts --------------------------------------------------------------------------------


async def get_attempts(transaction: PgTransaction, task_id: TaskId[Any]) -> list[FailedAttempt]:
    """Return the failed attempts of a task."""
    if not await transaction.rows(_sql.STATES, [task_id]):
        raise TaskNotFoundError(f"no task has the id {task_id}")
    rows = await transaction.rows(_admin_sql.ATTEMPTS, task_id)
    return read_rows(to_attempt, list(reversed(rows)))


# -- pauses ----------------------------------------------------------------------------------


async def pause_queue(transaction: PgTransaction, pauses: Sequence[QueuePause]) -> list[bool]:
    """Pause a queue."""
    (pause,) = pauses
    until = None if pause.until is None else finite(pause.until)
    texts = (pause.queue, storable(pause.reason), storable(pause.by))
    await transaction.rows(_admin_sql.PAUSE, transaction.moment, *texts, until)
    transaction.changed.add("cancels")
    return [True]


async def resume_queue(transaction: PgTransaction, queues: Sequence[str]) -> list[bool]:
    """End the pause of a queue."""
    rows = await transaction.rows(_admin_sql.RESUME, transaction.moment, queues[0])
    if rows:
        transaction.changed.add("tasks")
    return [any(row[0] for row in rows)]


async def list_pauses(transaction: PgTransaction) -> list[QueuePause]:
    """Return the pauses that have not ended."""
    rows = await transaction.rows(_admin_sql.PAUSES, transaction.moment)
    return read_rows(to_pause, rows)


# -- workers ---------------------------------------------------------------------------------


async def report(transaction: PgTransaction, worker: WorkerReport) -> WorkerOrders:
    """Store what a worker says of itself, and return its orders."""
    fields = dict(worker) | {
        "queues": list(worker.queues),
        "functions": list(worker.functions),
        "state": worker.state.value,
    }
    rows = await transaction.rows(_admin_sql.REPORT, transaction.moment, *fields.values())
    ordered, paused = rows[0]
    return WorkerOrders(make_order(ordered), frozenset(paused))


async def deregister(transaction: PgTransaction, worker_id: str) -> None:
    """Remove a worker that has ended."""
    await transaction.rows(_admin_sql.DEREGISTER, worker_id)


async def order_worker(transaction: PgTransaction, orders: Sequence[OrderRequest]) -> list[bool]:
    """Ask a worker to become quiet, to stop, or to go on."""
    (order,) = orders
    rows = await transaction.rows(_admin_sql.ORDER, order.worker_id, order.state.value)
    if rows:
        transaction.changed.add("cancels")
    return [bool(rows)]


async def list_workers(transaction: PgTransaction) -> list[WorkerInfo]:
    """Return the workers, with the tasks that they run."""
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    rows = await transaction.rows(_admin_sql.WORKERS, transaction.moment)
    for worker, task_id in await transaction.rows(_admin_sql.RUNNING) if rows else ():
        tasks[worker].append(task_id)
    return read_rows(lambda row: _to_worker(row, tasks[row[0]]), rows)


def _to_worker(row: Sequence[Any], tasks: list[str]) -> WorkerInfo:
    *reported, seen_at, now = row
    fields = dict(zip(WorkerReport.model_fields, reported, strict=True))
    fields |= {"queues": tuple(fields["queues"]), "functions": tuple(fields["functions"])}
    fields["started_at"] = to_moment(fields["started_at"])
    return make_worker(fields, to_moment(seen_at), tasks, now)


# -- overview --------------------------------------------------------------------------------


async def overview(transaction: PgTransaction) -> Overview:
    """Return a summary of the queues, the workers and the numbers of tasks."""
    now = transaction.moment
    parts = OverviewParts()
    heads: list[tuple[str, int, int, int]] = []
    for level in await transaction.rows(_admin_sql.LEVELS, now, COUNT_CAP):
        queue, priority, due, scheduled, oldest = level
        shown = parts.missing_heads(queue)
        if (due and shown[0]) or (scheduled and shown[1]):
            heads.append((queue, priority, *shown))
        parts.add_level(queue, due, scheduled, oldest)
    columns_of = [list(column) for column in zip(*heads, strict=True)] or [[], [], [], []]
    functions = await transaction.rows(_admin_sql.HEADS, now, *columns_of)
    parts.heads = {(row[0], row[1]) for row in functions}
    parts.running = {row[0]: row[1] for row in await transaction.rows(_admin_sql.IN_PROGRESS)}
    for status in ("retrying", "failed"):
        where = TaskFilter(status=status)
        parts.searched[status] = await count_tasks(transaction, where, COUNT_CAP, _COUNT_SECONDS)
    workers, pauses = await list_workers(transaction), await list_pauses(transaction)
    return make_overview(parts, workers, pauses, await _now(transaction))
