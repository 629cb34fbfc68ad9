"""The operations of the SQLite store, as functions of a transaction.

An operation takes a batch and returns one answer an item. The time comes with the
`SQLiteTransaction`; no operation reads a clock.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Final

from sitq._system_errors import LOST_ATTEMPT, LOST_ERROR, UNREADABLE
from sitq._task_batch import concat, has_keys, ids_of, split
from sitq.administration import KEPT_FAILURES
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._admin_sql import ADD_ATTEMPTS, FORGET_WORKERS, TRIM_ATTEMPTS
from sitq.backends.sqlite._rows import (
    EXPIRED,
    dump_rows,
    pack_blob,
    to_info,
    to_micros,
    to_reserved,
    to_result,
    to_task,
)
from sitq.errors import TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import (
    ALL_QUEUES,
    Lease,
    LeaseState,
    Outcome,
    OutcomeKind,
    Progress,
    Reservation,
    Result,
    Task,
    TaskInfo,
)
from sitq.protocols import Sweep

# A worker that has not reported for so many microseconds is removed.
WORKER_TTL: Final = 3600 * 1_000_000

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from sitq.backends._operations import PruneRequest, ReserveRequest, SweepRequest
    from sitq.backends.sqlite._rows import Row
    from sitq.models import ReservedTask
    from sitq.protocols import Topic

__all__ = [
    "SQLiteTransaction",
    "cancel",
    "enqueue",
    "finish",
    "get_results",
    "get_tasks",
    "load_task",
    "prune",
    "renew",
    "reserve",
    "set_progress",
    "sweep",
    "sweep_is_due",
]


@dataclass(slots=True)
class SQLiteTransaction:
    """One transaction: its connection, its time, and what it has changed."""

    connection: sqlite3.Connection
    moment: datetime
    changed: set[Topic] = field(default_factory=set)
    """The topics whose listeners are to be woken."""
    ended: list[TaskId[Any]] = field(default_factory=list)
    """The tasks whose attempts have ended."""
    now: int = field(init=False)
    """The time in microseconds since the epoch."""

    def __post_init__(self) -> None:
        """Compute the microseconds once; most statements need them."""
        self.now = to_micros(self.moment)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Any = ()) -> list[Row]:
        """Run one statement and return its rows.

        A text that is not UTF-8 is read with surrogates. No model accepts these, so that only its
        own row is unreadable.
        """
        try:
            return self.connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise  # an error of SQLite's, not of the driver's decoding
        self.connection.text_factory = _decoded
        try:
            return self.connection.execute(sql, parameters).fetchall()
        finally:
            self.connection.text_factory = str


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def enqueue(
    transaction: SQLiteTransaction, batches: list[Sequence[Task]]
) -> list[list[TaskId[Any]]]:
    """Store batches of tasks; a unique key in use gives the id of the task that holds it."""
    tasks = concat(batches)
    if tasks:
        transaction.changed.add("tasks")
    if has_keys(tasks):
        return split([_insert_unique(transaction, task) for task in tasks], batches)
    if tasks:
        transaction.execute(*_sql.insertion(tasks, transaction.now))
    return [ids_of(batch) for batch in batches]


def _insert_unique(transaction: SQLiteTransaction, task: Task) -> TaskId[Any]:
    values = _sql.values_of(task, transaction.now)
    if transaction.execute(_sql.INSERT_UNIQUE, values).rowcount:
        return task.id
    key = {"key": task.unique_key, "id": task.id, "now": transaction.now}
    holder, seq, change = transaction.execute(_sql.KEY_HOLDER, key).fetchone()
    if change is None:
        return TaskId(holder)
    if change == "expire":
        _set_final(transaction, seq, "expired")
    else:
        transaction.execute(_sql.RELEASE_KEY, {"seq": seq})
    transaction.execute(_sql.INSERT_UNIQUE, values)
    return task.id


def renew(
    transaction: SQLiteTransaction, leases: Sequence[Lease], seconds: float
) -> list[LeaseState]:
    """Renew the leases that are current; return the state of each."""
    rows = dump_rows(leases)
    ends_at = transaction.now + round(seconds * 1_000_000)
    transaction.execute(_sql.RENEW, {"rows": rows, "ends_at": ends_at})
    current = {
        (task_id, epoch): LeaseState.CANCEL_REQUESTED if cancelled else LeaseState.HELD
        for task_id, epoch, cancelled in transaction.execute(
            _sql.LEASE_STATES, {"rows": rows}
        ).fetchall()
    }
    return [current.get(lease, LeaseState.LOST) for lease in leases]


def sweep_is_due(transaction: SQLiteTransaction) -> bool:
    """Return whether a sweep would find anything to do."""
    bounds = {"now": transaction.now, "stale": transaction.now - WORKER_TTL}
    return bool(transaction.execute(_sql.SWEEP_DUE, bounds).fetchone()[0])


def sweep(transaction: SQLiteTransaction, limits: list[SweepRequest]) -> list[Sweep]:
    """Reclaim, expire and prune."""
    return [_sweep(transaction, each) for each in limits]


def _sweep(transaction: SQLiteTransaction, limits: SweepRequest) -> Sweep:
    bounds = {"now": min(transaction.now, limits.asked_at), "limit": limits.limit}
    ended = [seq for (seq,) in transaction.execute(_sql.ENDED_LEASES, bounds).fetchall()]
    transaction.execute(FORGET_WORKERS, {"before": bounds["now"] - WORKER_TTL})
    if ended:
        rows = {"rows": dump_rows(ended)}
        _add_attempts(transaction, rows["rows"], inf, LOST_ATTEMPT, None)
        values = {"now": transaction.now, "max_crashes": limits.max_crashes, "error": LOST_ERROR}
        transaction.execute(_sql.RECLAIM, rows | values)
        transaction.execute(_sql.DELETE_ENDED, rows)
        transaction.changed.update(("tasks", "results"))
    expired = transaction.execute(_sql.EXPIRE, bounds).rowcount
    if expired:
        transaction.changed.add("results")
    pruned = transaction.execute(_sql.PRUNE, bounds).rowcount
    return Sweep(len(ended), expired, pruned)


def _add_attempts(
    transaction: SQLiteTransaction,
    seqs: str,
    epoch: float,
    error: str | None,
    traceback: str | None,
) -> None:
    """Keep the attempts of a batch of tasks in progress as failed ones.

    No task was reserved more than ``epoch`` times: that many attempts it may have.
    """
    values = {"seqs": seqs, "now": transaction.now, "error": error or "", "traceback": traceback}
    transaction.execute(ADD_ATTEMPTS, values)
    if epoch > KEPT_FAILURES:
        transaction.execute(TRIM_ATTEMPTS, values)


def prune(transaction: SQLiteTransaction, requests: list[PruneRequest]) -> list[int]:
    """Remove final tasks by age."""
    return [_prune(transaction, *request) for request in requests]


def _prune(transaction: SQLiteTransaction, older_than: float, limit: int) -> int:
    before = transaction.now - round(older_than * 1_000_000)
    return transaction.execute(_sql.PRUNE_OLDER, {"before": before, "limit": limit}).rowcount


def set_progress(transaction: SQLiteTransaction, notes: list[tuple[Lease, Progress]]) -> list[bool]:
    """Store the progress of attempts that are current."""
    return [
        transaction.execute(
            _sql.SET_PROGRESS,
            {"id": lease.task_id, "epoch": lease.epoch, "progress": progress.model_dump_json()},
        ).rowcount
        == 1
        for lease, progress in notes
    ]


def get_tasks(
    transaction: SQLiteTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[TaskInfo | None]:
    """Return the info of each task, or ``None`` for one that does not exist."""
    rows = transaction.rows(_sql.INFOS, {"rows": dump_rows(task_ids)})
    infos = {row[0]: to_info(row) for row in rows}
    return [infos.get(task_id) for task_id in task_ids]


def get_results(
    transaction: SQLiteTransaction, task_ids: Sequence[TaskId[Any]]
) -> dict[TaskId[Any], Result[Any] | None]:
    """Return the results of the tasks that exist; ``None`` for one that is not final."""
    rows = transaction.rows(_sql.RESULTS, {"rows": dump_rows(task_ids)})
    return {TaskId(row[0]): to_result(row) for row in rows}


def load_task(transaction: SQLiteTransaction, task_id: TaskId[Any]) -> Task:
    """Return a task as it was enqueued."""
    rows = transaction.rows(_sql.STORED, (task_id,))
    if not rows:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return to_task(rows[0])


# A row that was read as JSON, and where two of its columns are.
_Row = list[Any]
_TIMEOUT: Final = 10
_PAYLOAD: Final = 13
_BEFORE_ALL: Final = -(2**63)
_SMALLEST_CHUNK: Final = 8
_ABOVE_ALL_PRIORITIES: Final = 101


def reserve(transaction: SQLiteTransaction, requests: list[ReserveRequest]) -> list[Reservation]:
    """Reserve due tasks for each request in turn."""
    return [_reserve(transaction, request) for request in requests]


def _reserve(transaction: SQLiteTransaction, request: ReserveRequest) -> Reservation:
    rows, wait = _due(transaction, request)
    tasks = _readable(transaction, rows)
    started = _start(transaction, list(tasks))
    if started:
        lease = {
            "rows": dump_rows(started),
            "worker": request.worker,
            "ends_at": transaction.now + round(request.lease * 1_000_000),
        }
        transaction.execute(_sql.INSERT_LEASES, lease)
    return Reservation(tuple(tasks[seq] for seq in started), wait)


def _readable(transaction: SQLiteTransaction, rows: list[_Row]) -> dict[int, ReservedTask]:
    """Return the tasks of the rows that can be read; fail the others.

    A row that was written by hand must not keep other tasks from being reserved.
    """
    tasks = {}
    for row in rows:
        try:
            tasks[row[0]] = to_reserved(row)
        except Exception:  # noqa: BLE001 - see above
            _fail(transaction, row[0])
    return tasks


def _start(transaction: SQLiteTransaction, seqs: list[int]) -> list[int]:
    """Mark tasks as started, and return those; fail the ones that a CHECK refuses."""
    if not seqs:
        return []
    try:
        transaction.execute(_sql.MARK_RESERVED, {"rows": dump_rows(seqs), "now": transaction.now})
    except sqlite3.IntegrityError:
        if len(seqs) > 1:
            return [one for seq in seqs for one in _start(transaction, [seq])]
        _fail(transaction, seqs[0])
        return []
    return seqs


def _fail(transaction: SQLiteTransaction, seq: int) -> None:
    _set_final(transaction, seq, "failed", error=UNREADABLE)


def _due(
    transaction: SQLiteTransaction, request: ReserveRequest
) -> tuple[list[_Row], float | None]:
    """Return the due rows in order, and the seconds until the next one.

    Goes from priority to priority, each a seek in the index, so that tasks that are not due yet
    are never scanned. One row beyond the limit shows whether any are left.
    """
    queues: Iterable[str] = request.queues
    if request.queues == ALL_QUEUES:
        queues = [queue for (queue,) in transaction.rows(_sql.PENDING_QUEUES)]
    paused = dict(transaction.execute(_sql.PAUSED, (transaction.now,)).fetchall())
    levels = {
        queue: _level(transaction, queue, _ABOVE_ALL_PRIORITIES)
        for queue in queues
        if queue not in paused
    }
    visited: list[dict[str, Any]] = []
    rows: list[_Row] = []
    while any(level is not None for level in levels.values()):
        priority = max(level for level in levels.values() if level is not None)
        places: list[dict[str, Any]] = [
            {"queue": queue, "priority": priority, "now": transaction.now}
            for queue, level in levels.items()
            if level == priority
        ]
        missing = request.limit + 1 - len(rows)
        if len(places) == 1:
            found = transaction.rows(_sql.DUE, {**places[0], "limit": missing})
            rows += _parsed(transaction, found)
        else:
            rows += _due_among(transaction, places, missing)
        if len(rows) > request.limit:
            return rows[: request.limit], 0.0
        visited += places
        for place in places:
            levels[place["queue"]] = _level(transaction, place["queue"], priority)
    etas = [eta for place in visited for (eta,) in transaction.rows(_sql.NEXT_ETA, place)]
    for queue in paused.keys() & queues:
        etas += _start_after_pause(transaction, queue, paused[queue])
    return rows, (min(etas) - transaction.now) / 1_000_000 if etas else None


def _start_after_pause(transaction: SQLiteTransaction, queue: str, until: int | None) -> list[int]:
    """Return when the first task of a paused queue may start, if it has one and the pause ends."""
    etas: list[int] = []
    priority = _level(transaction, queue, _ABOVE_ALL_PRIORITIES) if until is not None else None
    while priority is not None:
        place = {"queue": queue, "priority": priority, "now": transaction.now}
        etas += [eta for (eta,) in transaction.rows(_sql.FIRST_ETA, place)]
        priority = _level(transaction, queue, priority)
    return [max(min(etas), until)] if etas and until is not None else []


def _level(transaction: SQLiteTransaction, queue: str, below: int) -> int | None:
    """Return the highest priority below another that is in use in a queue."""
    row = transaction.execute(_sql.NEXT_PRIORITY, (queue, below)).fetchone()
    return None if row is None else row[0]


def _due_among(
    transaction: SQLiteTransaction, places: list[dict[str, Any]], limit: int
) -> list[_Row]:
    """Return the due rows of one priority of several queues, by eta and _sql.insertion.

    The queues' keys are merged, and read in chunks from the index.
    """
    chunk = max(_SMALLEST_CHUNK, 2 * limit // len(places))
    keys = merge(*(_keys(transaction, {**place, "limit": chunk}) for place in places))
    order = {seq: number for number, (_, seq) in enumerate(islice(keys, limit))}
    rows = _parsed(transaction, transaction.rows(_sql.DUE_ROWS, {"rows": dump_rows(list(order))}))
    return sorted(rows, key=lambda row: order[row[0]])


def _keys(transaction: SQLiteTransaction, place: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield eta and number of the due tasks of one queue and one priority, in order."""
    last = (_BEFORE_ALL, 0)
    while True:
        found = transaction.rows(_sql.DUE_KEYS, {**place, "eta": last[0], "seq": last[1]})
        yield from found
        if len(found) < place["limit"]:
            return
        last = found[-1]


def _parsed(transaction: SQLiteTransaction, found: list[Row]) -> list[_Row]:
    """Return the rows of a JSON text."""
    ((text,),) = found
    rows: list[_Row] = json.loads(text)
    for row in rows:
        if row[_TIMEOUT] is not None:
            row[_TIMEOUT] = float(row[_TIMEOUT])
        if row[_PAYLOAD] is None:  # it is large
            row[_PAYLOAD] = transaction.execute(_sql.PAYLOAD, (row[0],)).fetchone()[0]
        else:
            row[_PAYLOAD] = bytes.fromhex(row[_PAYLOAD])
    return rows


def finish(transaction: SQLiteTransaction, outcomes: list[Outcome]) -> list[bool]:
    """End attempts, in one statement if all are successes."""
    transaction.ended += [outcome.task_id for outcome in outcomes]
    is_well = all(outcome.kind is OutcomeKind.SUCCESS for outcome in outcomes)
    if outcomes and is_well and _succeed(transaction, outcomes):
        transaction.changed.add("results")
        return [True] * len(outcomes)
    return [_finish_one(transaction, outcome) for outcome in outcomes]


def _succeed(transaction: SQLiteTransaction, outcomes: list[Outcome]) -> bool:
    """Store a batch of successes, or nothing if one of them is not acceptable."""
    values = [outcome.value or b"" for outcome in outcomes]
    if values.count(values[0]) == len(values):
        statement = _sql.SUCCEED_ALIKE
        rows = dump_rows({outcome.task_id: outcome.epoch for outcome in outcomes})
        parameters = {"rows": rows, "value": values[0], "now": transaction.now}
    else:
        statement = _sql.SUCCEED_BATCH
        blob, places = pack_blob(values)
        rows = dump_rows(
            {
                outcome.task_id: (outcome.epoch, *place)
                for outcome, place in zip(outcomes, places, strict=True)
            }
        )
        parameters = {"rows": rows, "blob": blob, "now": transaction.now}
    is_batch = len(outcomes) > 1  # a single update that matches no row changes nothing
    if is_batch:
        transaction.execute("SAVEPOINT batch")
    # Two outcomes for one task are one key in the rows, so the counts differ.
    is_accepted = transaction.execute(statement, parameters).rowcount == len(outcomes)
    if is_accepted:
        transaction.execute(_sql.DELETE_LEASES, {"rows": rows})
    elif is_batch:
        transaction.execute("ROLLBACK TO batch")
    if is_batch:
        transaction.execute("RELEASE batch")
    return is_accepted


def _finish_one(transaction: SQLiteTransaction, outcome: Outcome) -> bool:
    attempt = transaction.execute(
        _sql.OPEN_ATTEMPT, {"id": outcome.task_id, "epoch": outcome.epoch}
    ).fetchone()
    if attempt is None:
        return False
    seq, attempts, max_attempts, cancelled = attempt
    kind = outcome.kind
    eta = transaction.now + round(outcome.delay * 1_000_000)
    if kind is OutcomeKind.RETRY and max_attempts is not None and attempts >= max_attempts:
        kind = OutcomeKind.FAILURE
    if cancelled and kind in _AGAIN:
        kind = OutcomeKind.CANCELLED
    error = {"error": outcome.error, "traceback": outcome.traceback}
    if kind is OutcomeKind.RETRY:
        _add_attempts(transaction, dump_rows([seq]), outcome.epoch, **error)
        transaction.execute(_sql.SET_RETRY, {"seq": seq, "eta": eta, **error})
    elif kind is OutcomeKind.RELEASE:
        transaction.execute(_sql.SET_RELEASED, {"seq": seq})
    elif kind is OutcomeKind.UNKNOWN_FUNCTION:
        transaction.execute(_sql.SET_MISSED, {"seq": seq, "eta": eta})
    elif kind is OutcomeKind.SUCCESS:
        _set_final(transaction, seq, "success", value=outcome.value or b"")
    elif kind is OutcomeKind.FAILURE:
        _add_attempts(transaction, dump_rows([seq]), outcome.epoch, **error)
        _set_final(transaction, seq, "failed", **error)
    else:
        _set_final(transaction, seq, "cancelled")
    transaction.execute(_sql.DELETE_LEASE, {"seq": seq})
    if kind in _AGAIN:
        transaction.changed.add("tasks")
    return True


# The outcomes after which a task is pending again.
_AGAIN: Final = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}


def _set_final(transaction: SQLiteTransaction, seq: int, status: str, **columns: Any) -> None:
    values = {**EXPIRED, "status": status, "seq": seq, "now": transaction.now, **columns}
    transaction.execute(_sql.SET_FINAL, values)
    transaction.changed.add("results")


def cancel(transaction: SQLiteTransaction, task_ids: list[TaskId[Any]]) -> list[bool]:
    """Cancel pending tasks; request the cancellation of running ones."""
    return [_cancel(transaction, task_id) for task_id in task_ids]


def _cancel(transaction: SQLiteTransaction, task_id: TaskId[Any]) -> bool:
    row = transaction.execute(_sql.STATUS, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    seq, status = row
    if status == "pending":
        _set_final(transaction, seq, "cancelled")
        return True
    if status == "in_progress":
        transaction.execute(_sql.REQUEST_CANCEL, (seq,))
        transaction.execute(_sql.RELEASE_KEY, {"seq": seq})
        transaction.changed.add("cancels")
        return True
    return False
