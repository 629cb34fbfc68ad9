"""The operations for the administration of the SQLite store; see ``_operations``."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from sitq.administration import (
    BulkChange,
    Count,
    FailedAttempt,
    Overview,
    QueuePause,
    TaskFilter,
    TaskPage,
    WorkerInfo,
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
from sitq.backends.sqlite import _admin_sql, _operations, _sql
from sitq.backends.sqlite._rows import (
    dump_rows,
    from_micros,
    to_attempt,
    to_info,
    to_micros,
    to_moment,
    to_pause,
    to_task,
)
from sitq.errors import TaskNotFoundError
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sitq.administration import BulkResult
    from sitq.backends._operations import OrderRequest
    from sitq.backends._task_filters import ChangeRequest, RetryRequest
    from sitq.backends.sqlite._operations import SQLiteTransaction
    from sitq.backends.sqlite._rows import Row
    from sitq.ids import TaskId
    from sitq.models import Task, TaskInfo

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

# After all ids, and before and after all places of pending tasks.
_AFTER_ALL: Final = "~"
_FIRST: Final = (-(2**63), -(2**63))
_LAST: Final = (2**63 - 1, 2**63 - 1)
_TOP: Final = 2**15
_ETA: Final = INFO_FIELDS.index("eta")
# So many levels, each a queue and a priority, does a call look at.
_LEVELS: Final = 2000
_COUNT_SECONDS: Final = 0.05
# So many rows are counted by one statement.
_COUNT_STEP: Final = 5000

Level = tuple[str, int]
Place = tuple[int, int]

# -- lists -----------------------------------------------------------------------------------


def list_tasks(
    transaction: SQLiteTransaction, where: TaskFilter, limit: int, cursor: str | None
) -> TaskPage:
    """Return a page of the tasks that match."""
    if where.status in IN_RESERVATION_ORDER:
        return _pending_page(transaction, where, limit, cursor)
    statements = _admin_sql.IdList(where)
    before = _AFTER_ALL if cursor is None else str(decode_cursor(where, cursor)[0])
    floor = _floor(transaction, statements, before, MAX_SCANNED_ROWS)
    values = statements.values(before, floor=floor[0] if floor else "", limit=limit + 1)
    rows = transaction.rows(statements.page, values)
    infos = read_rows(to_info, rows[:limit])
    if len(rows) > limit:
        return TaskPage(tuple(infos), encode_cursor(where, [rows[limit - 1][0]]), None)
    if floor is None:
        return TaskPage(tuple(infos), None, None)
    return TaskPage(tuple(infos), encode_cursor(where, [floor[0]]), to_moment(floor[1]))


def _floor(
    transaction: SQLiteTransaction, statements: _admin_sql.IdList, before: str, bound: int
) -> tuple[str, int] | None:
    """Return the last row that a call looks at, its id and when it was enqueued; ``None``: all."""
    values = statements.values(before, bound=bound - 1)
    row: tuple[str, int] | None = transaction.execute(statements.floor, values).fetchone()
    return row


def _pending_page(
    transaction: SQLiteTransaction, where: TaskFilter, limit: int, cursor: str | None
) -> TaskPage:
    statements = _admin_sql.PendingList(where, transaction.now)
    rows: list[Row] = []
    keys: tuple[Level, Place] | None = None
    for level, after, last, is_cut in _scan_ranges(transaction, where, statements, cursor):
        values = statements.values(
            level, after, last_eta=last[0], last_seq=last[1], limit=limit + 1 - len(rows)
        )
        for *row, seq in transaction.rows(statements.page, values):
            if len(rows) == limit:
                return TaskPage(_infos(rows), _pending_cursor(where, keys), None)
            rows.append(tuple(row))
            keys = level, (row[_ETA], seq)
        if is_cut:
            scanned_to = from_micros(transaction.now)
            return TaskPage(_infos(rows), _pending_cursor(where, (level, last)), scanned_to)
    return TaskPage(_infos(rows), None, None)


def _infos(rows: list[Row]) -> tuple[TaskInfo, ...]:
    return tuple(read_rows(to_info, rows))


def _pending_cursor(where: TaskFilter, keys: tuple[Level, Place] | None) -> str | None:
    return None if keys is None else encode_cursor(where, [*keys[0], *keys[1]])


def _scan_ranges(
    transaction: SQLiteTransaction,
    where: TaskFilter,
    statements: _admin_sql.PendingList,
    cursor: str | None,
) -> Iterator[tuple[Level, Place, Place, bool]]:
    """Yield what a call looks at: a level, a place to go on after, the last place, and if it ends.

    Together they have a bounded number of rows, where the filter has to look at each.
    """
    level: Level | None
    if cursor is None:
        level, after = _next_level(transaction, where, ("", -_TOP)), _FIRST
    else:
        queue, priority, eta, seq = decode_cursor(where, cursor)
        level, after = (str(queue), int(priority)), (int(eta), int(seq))
    left = MAX_SCANNED_ROWS
    for _ in range(_LEVELS):
        if level is None:
            return
        floor: Place | None = None
        if statements.is_selective:
            values = statements.values(level, after, bound=left)
            scanned = transaction.execute(statements.scanned, values).fetchone()[0]
            if scanned == left:
                values["bound"] = scanned - 1
                floor = transaction.execute(statements.floor, values).fetchone()
            left -= scanned
        yield level, after, floor or _LAST, floor is not None
        if floor is not None:
            return
        level, after = _next_level(transaction, where, level), _FIRST
    if level is not None:
        yield level, _FIRST, _FIRST, True


def _next_level(transaction: SQLiteTransaction, where: TaskFilter, level: Level) -> Level | None:
    """Return the queue and the priority of the tasks that come after those of a level."""
    queue, priority = level
    if where.queue is not None and not queue:
        queue, priority = where.queue, _TOP
    values = {"queue": queue, "priority": priority}
    row: Level | None = transaction.execute(_admin_sql.NEXT_LEVEL, values).fetchone()
    if row is None and where.queue is None:
        row = transaction.execute(_admin_sql.NEXT_QUEUE, values).fetchone()
    return row


def count_tasks(
    transaction: SQLiteTransaction, where: TaskFilter, most: int, seconds: float
) -> Count:
    """Count the tasks that match."""
    give_up = time.monotonic() + seconds
    number, as_of = 0, transaction.moment
    for counted in _counts(transaction, where, most):
        number += counted
        if number >= most:
            return Count(most, exact=False, as_of=as_of)
        if time.monotonic() >= give_up:
            return Count(number, exact=False, as_of=as_of)
    return Count(number, exact=True, as_of=as_of)


def _counts(transaction: SQLiteTransaction, where: TaskFilter, most: int) -> Iterator[int]:
    """Yield how many tasks match among one bounded number of rows after the other."""
    if where.status in IN_RESERVATION_ORDER:
        pending = _admin_sql.PendingList(where, transaction.now)
        level, after = _next_level(transaction, where, ("", -_TOP)), _FIRST
        while level is not None:
            values = pending.values(level, after, bound=_COUNT_STEP - 1)
            last: Place | None = transaction.execute(pending.floor, values).fetchone()
            eta, seq = last or _LAST
            bounds = {"last_eta": eta, "last_seq": seq, "limit": most}
            yield transaction.execute(pending.count, values | bounds).fetchone()[0]
            if last is None:
                level, after = _next_level(transaction, where, level), _FIRST
            else:
                after = last
        return
    statements = _admin_sql.IdList(where)
    before = _AFTER_ALL
    while True:
        floor = _floor(transaction, statements, before, _COUNT_STEP)
        values = statements.values(before, floor=floor[0] if floor else "", limit=most)
        yield transaction.execute(statements.count, values).fetchone()[0]
        if floor is None:
            return
        before = floor[0]


# -- changes ---------------------------------------------------------------------------------


def change_tasks(transaction: SQLiteTransaction, requests: list[ChangeRequest]) -> list[BulkResult]:
    """Change the tasks that match."""
    return [_change(transaction, request) for request in requests]


def _change(transaction: SQLiteTransaction, request: ChangeRequest) -> BulkResult:
    page = list_tasks(transaction, request.where, request.limit, request.cursor)
    change = request.change
    accepted, result = partition_tasks(page.items, change, page.cursor)
    if request.dry_run or not accepted:
        return result
    rows = dump_rows([info.task_id for info in accepted])
    now = transaction.now
    match change.kind:
        case BulkChange.CANCEL:
            running = [info.task_id for info in accepted if info.status is TaskStatus.IN_PROGRESS]
            transaction.execute(_admin_sql.CANCEL_PENDING, {"rows": rows, "now": now})
            transaction.execute(_admin_sql.REQUEST_CANCELS, {"rows": dump_rows(running)})
            transaction.execute(_admin_sql.RELEASE_KEYS, {"rows": dump_rows(running)})
            transaction.changed.update({"results", "cancels"})
        case BulkChange.DELETE:
            transaction.execute(_admin_sql.DELETE, {"rows": rows})
            transaction.changed.add("results")
        case BulkChange.POSTPONE if change.eta is not None:
            transaction.execute(_admin_sql.POSTPONE, {"rows": rows, "eta": to_micros(change.eta)})
        case _:
            transaction.execute(
                _admin_sql.SET_PRIORITY, {"rows": rows, "priority": change.priority}
            )
    return result


def replace_task(transaction: SQLiteTransaction, tasks: list[Task]) -> list[bool]:
    """Give pending tasks a new eta and payload."""
    done = []
    for task in tasks:
        eta = None if task.eta is None else to_micros(task.eta)
        values = {"id": task.id, "eta": eta, "now": transaction.now, "payload": task.payload}
        done.append(transaction.execute(_admin_sql.REPLACE_PENDING, values).rowcount == 1)
    if any(done):
        transaction.changed.add("tasks")
    return done


def retry_tasks(
    transaction: SQLiteTransaction, requests: list[RetryRequest]
) -> list[list[TaskId[Any] | None]]:
    """Store tasks that repeat final ones."""
    return [
        [_repeat(transaction, repeat, again=request.again) for repeat in request.repeats]
        for request in requests
    ]


def _repeat(transaction: SQLiteTransaction, repeat: Task, *, again: bool) -> TaskId[Any] | None:
    row = transaction.execute(_admin_sql.REPEATED, (repeat.retry_of,)).fetchone()
    if row is None or not row[0] or (row[1] is not None and not again):
        return None
    ((new,),) = _operations.enqueue(transaction, [(repeat,)])
    transaction.execute(_admin_sql.SET_REPEATED, (new, repeat.retry_of))
    return new


def load_tasks(
    transaction: SQLiteTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[Task | None]:
    """Return tasks as they were enqueued."""
    rows = transaction.rows(_sql.STORED_BATCH, {"rows": dump_rows(task_ids)})
    tasks = {task.id: task for task in read_rows(to_task, rows)}
    return [tasks.get(task_id) for task_id in task_ids]


# -- attempts --------------------------------------------------------------------------------


def get_attempts(transaction: SQLiteTransaction, task_id: TaskId[Any]) -> list[FailedAttempt]:
    """Return the failed attempts of a task."""
    if not transaction.rows(_sql.STATUS, (task_id,)):
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return read_rows(to_attempt, transaction.rows(_admin_sql.ATTEMPTS, (task_id,)))


# -- pauses ----------------------------------------------------------------------------------


def pause_queue(transaction: SQLiteTransaction, pauses: list[QueuePause]) -> list[None]:
    """Pause queues."""
    for pause in pauses:
        values = {
            "queue": pause.queue,
            "reason": pause.reason,
            "by": pause.by,
            "now": transaction.now,
            "until": None if pause.until is None else to_micros(pause.until),
        }
        transaction.execute(_admin_sql.PAUSE, values)
    transaction.changed.add("cancels")
    return [None] * len(pauses)


def resume_queue(transaction: SQLiteTransaction, queues: list[str]) -> list[bool]:
    """End the pauses of queues."""
    found = [transaction.execute(_admin_sql.RESUME, (queue,)).fetchall() for queue in queues]
    if any(found):
        transaction.changed.add("tasks")
    return [any(until is None or until > transaction.now for (until,) in rows) for rows in found]


def list_pauses(transaction: SQLiteTransaction) -> list[QueuePause]:
    """Return the pauses that have not ended."""
    return read_rows(to_pause, transaction.rows(_admin_sql.PAUSES, {"now": transaction.now}))


# -- workers ---------------------------------------------------------------------------------


def report(transaction: SQLiteTransaction, worker: WorkerReport) -> WorkerOrders:
    """Store what a worker says of itself, and return its orders."""
    values = _admin_sql.report_values(worker, transaction.now)
    ((ordered,),) = transaction.execute(_admin_sql.REPORT, values).fetchall()
    paused = transaction.rows(_admin_sql.PAUSES, {"now": transaction.now})
    return WorkerOrders(make_order(ordered), frozenset(row[0] for row in paused))


def deregister(transaction: SQLiteTransaction, worker_id: str) -> None:
    """Remove a worker that has ended."""
    transaction.execute(_admin_sql.DEREGISTER, (worker_id,))


def order_worker(transaction: SQLiteTransaction, orders: list[OrderRequest]) -> list[bool]:
    """Ask workers to become quiet, to stop, or to go on."""
    transaction.changed.add("cancels")
    return [
        transaction.execute(_admin_sql.ORDER, (state.value, worker_id)).rowcount == 1
        for worker_id, state in orders
    ]


def list_workers(transaction: SQLiteTransaction) -> list[WorkerInfo]:
    """Return the workers, with the tasks that they run."""
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    rows = transaction.rows(_admin_sql.WORKERS)
    for worker, task_id in transaction.rows(_admin_sql.RUNNING) if rows else ():
        tasks[worker].append(task_id)
    return read_rows(lambda row: _to_worker(transaction, row, tasks[row[0]]), rows)


def _to_worker(transaction: SQLiteTransaction, row: Sequence[Any], tasks: list[str]) -> WorkerInfo:
    *reported, seen_at = row
    fields = dict(zip(WorkerReport.model_fields, reported, strict=True))
    for name in ("queues", "functions"):
        fields[name] = _to_names(fields[name])
    fields["started_at"] = to_moment(fields["started_at"])
    return make_worker(fields, to_moment(seen_at), tasks, transaction.moment)


def _to_names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if type(names) is not list:
        raise ValueError("stored names are no list")
    return tuple(names)


# -- overview --------------------------------------------------------------------------------


def overview(transaction: SQLiteTransaction) -> Overview:
    """Return a summary of the queues, the workers and the numbers of tasks."""
    parts = OverviewParts(running=dict(transaction.rows(_admin_sql.IN_PROGRESS)))
    now = transaction.now
    counted = {"now": now, "limit": COUNT_CAP}
    for queue, priority, due, scheduled, first in transaction.rows(_admin_sql.LEVELS, counted):
        missing, later = parts.missing_heads(queue)
        if (due and missing) or (scheduled and later):
            level = {"queue": queue, "priority": priority, "now": now}
            shown = {"due": missing, "later": later}
            head = transaction.rows(_admin_sql.HEAD, level | shown)
            parts.heads |= {(queue, function) for (function,) in head}
        oldest = None if first is None else (now - first) / 1_000_000
        parts.add_level(queue, due, scheduled, oldest)
    for status in ("retrying", "failed"):
        where = TaskFilter(status=status)
        parts.searched[status] = count_tasks(transaction, where, COUNT_CAP, _COUNT_SECONDS)
    return make_overview(
        parts, list_workers(transaction), list_pauses(transaction), transaction.moment
    )
