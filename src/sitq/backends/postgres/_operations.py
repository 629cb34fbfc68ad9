"""The operations of the PostgreSQL store; each is one statement, and so one transaction.

An operation takes a batch and returns one answer an item. Requests of many callers share a batch
of `enqueue` and `finish`; the other operations get one item at a time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sitq._task_batch import TaskBatch, concat, ids_of, split
from sitq.backends._rows import LOST_ERROR, UNREADABLE
from sitq.backends.postgres import _sql
from sitq.backends.postgres._errors import LostError, sqlstate_of
from sitq.backends.postgres._rows import (
    columns,
    common_columns,
    storable,
    to_info,
    to_reserved,
    to_result,
    to_task,
)
from sitq.errors import SitqError, TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import (
    ALL_QUEUES,
    Lease,
    LeaseState,
    OutcomeKind,
    Progress,
    Reservation,
    Result,
    Task,
    TaskInfo,
)
from sitq.protocols import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sitq.backends._operations import PruneRequest, ReserveRequest, SweepRequest
    from sitq.backends.postgres._connection import PgConnection, Row
    from sitq.backends.postgres._sql import Statements
    from sitq.backends.postgres._wakeups import NotifyThrottle
    from sitq.models import Outcome, ReservedTask
    from sitq.protocols import Topic

__all__ = [
    "PgTransaction",
    "cancel",
    "cancelled_before",
    "enqueue",
    "enqueue_unique",
    "enqueued_before",
    "finish",
    "finish_all",
    "finished_before",
    "get_results",
    "get_tasks",
    "load_task",
    "prune",
    "renew",
    "reserve",
    "reserved_before",
    "set_progress",
    "sweep",
]


@dataclass(slots=True)
class PgTransaction:
    """One operation's connection, its time, and what it has changed.

    ``moment`` is the time of a test's clock; ``None``: the server's clock is used. ``notified`` are
    the topics that the statement notifies if it changes them. ``deferred`` are those of them that
    must be notified in any case, since an earlier statement changed them. ``is_sent`` is true once
    a statement may have reached the server, ``has_committed`` once one was carried out.
    """

    connection: PgConnection
    statements: Statements
    throttle: NotifyThrottle
    moment: datetime | None
    changed: set[Topic] = field(default_factory=set)
    notified: set[Topic] = field(default_factory=set)
    deferred: set[Topic] = field(default_factory=set)
    is_sent: bool = False
    has_committed: bool = False

    async def rows(self, sql: str, *parameters: Any) -> list[Row]:
        """Run one statement and return its rows."""
        self.is_sent = True
        rows = await self.connection.fetch(self.statements[sql], parameters)
        self.has_committed = True
        return rows

    def may_be_committed(self, error: BaseException) -> bool:
        """Return whether an error may have come after a commit."""
        if isinstance(error, SitqError | LostError) or not isinstance(error, Exception):
            return False
        return self.has_committed or (self.is_sent and not sqlstate_of(error))

    def news(self, topics: Iterable[Topic]) -> tuple[str, list[str]]:
        """Return the text and the channels of the notification for a change of topics."""
        channels, notified, deferred = self.throttle.notify_with(topics)
        self.notified |= notified
        self.deferred |= deferred
        return self.throttle.token, channels


# A renewal tries locked tasks again after these shares of the lease, but at most after the pause
# below, in seconds.
_PAUSES: Final = (0.02, 0.04)
_SHORT_PAUSE: Final = 0.05


async def enqueue(
    transaction: PgTransaction, batches: Sequence[Sequence[Task]]
) -> list[list[TaskId[Any]]]:
    """Store batches of tasks that have no unique keys."""
    if tasks := concat(batches):
        await _insert(transaction, tasks)
    return [ids_of(batch) for batch in batches]


async def _insert(transaction: PgTransaction, tasks: Sequence[Task]) -> None:
    transaction.changed.add("tasks")
    token, channels = transaction.news(["tasks"])
    if not isinstance(tasks, TaskBatch) or (common := common_columns(tasks.pattern)) is None:
        await transaction.rows(
            _sql.INSERT_BATCH, transaction.moment, *columns(tasks), token, channels
        )
    elif len(tasks) > 1:
        ids = " ".join(tasks.ids)
        values = (transaction.moment, ids, *common, tasks.payloads)
        await transaction.rows(_sql.INSERT_ALIKE, *values, token, channels)
    else:
        values = (transaction.moment, tasks.ids[0], *common, tasks.payloads[0])
        if channels:
            await transaction.rows(_sql.INSERT_ONE_AND_NOTIFY, *values, token, channels[0])
        else:
            await transaction.rows(_sql.INSERT_ONE, *values)


async def enqueue_unique(
    transaction: PgTransaction, batches: Sequence[Sequence[Task]]
) -> list[list[TaskId[Any]] | None]:
    """Store tasks, some with unique keys; a key in use gives the id of the task that holds it.

    ``None``: nothing is stored, since an open transaction has stored one of the keys. The caller
    tries again, and does not block tasks with other keys.
    """
    ids = await _insert_unique(transaction, concat(batches))
    return [None] * len(batches) if ids is None else [*split(ids, batches)]


async def _insert_unique(
    transaction: PgTransaction, tasks: Sequence[Task]
) -> list[TaskId[Any]] | None:
    token, channels = transaction.news(["tasks"])
    fields = columns(tasks)
    rows = await transaction.rows(
        _sql.TRY_INSERT_UNIQUE, transaction.moment, *fields, token, channels
    )
    holders, expired, _ = rows[0]
    if holders is None:
        return None
    transaction.changed.add("tasks")
    if expired:
        transaction.changed.add("results")
    return [TaskId(holder) for holder in holders]


async def enqueued_before(
    transaction: PgTransaction, batches: Sequence[Sequence[Task]]
) -> list[list[TaskId[Any]] | None] | None:
    """Return the answers of an `enqueue` whose answer was lost; ``None`` if it stored nothing.

    Ids are new, and a batch is stored as a whole or not at all: one stored task proves all.
    """
    tasks = list(chain.from_iterable(batches))
    stored = {row[0] for row in await transaction.rows(_sql.EXISTING, ids_of(tasks))}
    if not stored:
        return None
    # The keys of the missing ones were held by other tasks: it is safe to insert them again.
    missing = [task for task in tasks if task.id not in stored]
    found = await _insert_unique(transaction, missing) if missing else []
    if found is None:
        return [None] * len(batches)
    holders = iter(found)
    if any(task.unique_key is not None for task in tasks):
        transaction.changed.add("results")  # it may have expired holders
    ids = [task.id if task.id in stored else next(holders) for task in tasks]
    return [*split(ids, batches)]


async def renew(
    transaction: PgTransaction, leases: Sequence[Lease], seconds: float
) -> list[LeaseState]:
    """Renew the leases that are current; return the state of each."""
    states: dict[tuple[str, int], LeaseState] = {}
    left = set(leases)
    # A lock on a task is mostly short.
    for pause in (0.0, *(min(_SHORT_PAUSE, share * seconds) for share in _PAUSES)):
        await asyncio.sleep(pause)
        wanted = sorted(left)
        rows = await transaction.rows(
            _sql.RENEW,
            transaction.moment,
            [lease.task_id for lease in wanted],
            [lease.epoch for lease in wanted],
            seconds,
        )
        for task_id, epoch, cancelled in rows:
            state = LeaseState.CANCEL_REQUESTED if cancelled else LeaseState.HELD
            states[task_id, epoch] = state
        left = await _passed_over(transaction, (lease for lease in wanted if lease not in states))
        if not left:
            break
    states |= dict.fromkeys(left, LeaseState.UNKNOWN)
    return [states.get(lease, LeaseState.LOST) for lease in leases]


async def _passed_over(transaction: PgTransaction, leases: Iterable[Lease]) -> set[Lease]:
    """Return those of the leases that are current; a statement skipped their locked tasks.

    An epoch is current for one period only: one that is current now was current then.
    """
    skipped = set(leases)
    if not skipped:
        return skipped
    rows = await transaction.rows(_sql.STATES, [lease.task_id for lease in skipped])
    return skipped & {Lease(row[0], row[1]) for row in rows if row[2] == "in_progress"}


async def sweep(transaction: PgTransaction, limits: Sequence[SweepRequest]) -> list[Sweep]:
    """Reclaim, expire and prune."""
    (each,) = limits
    lost = LOST_ERROR.replace("%d", "%s")
    since = time.monotonic() - each.asked_at if transaction.moment is None else 0.0
    rows = await transaction.rows(
        _sql.SWEEP, transaction.moment, each.max_crashes, each.limit, lost, since
    )
    swept = Sweep(*rows[0])
    if swept.reclaimed:
        transaction.changed.add("tasks")
    if swept.reclaimed or swept.expired:
        transaction.changed.add("results")
    return [swept]


async def prune(transaction: PgTransaction, requests: Sequence[PruneRequest]) -> list[int]:
    """Remove final tasks by age."""
    (request,) = requests
    rows = await transaction.rows(
        _sql.PRUNE_OLDER, transaction.moment, request.older_than, request.limit
    )
    return [len(rows)]


async def cancel(transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]) -> list[bool | None]:
    """Cancel a task, or request it of a running one; ``None`` if the task is locked."""
    (task_id,) = task_ids
    rows = await transaction.rows(_sql.CANCEL, transaction.moment, task_id)
    if not rows:
        if await transaction.rows(_sql.STATES, [task_id]):
            return [None]
        raise TaskNotFoundError(f"no task has the id {task_id}")
    status = rows[0][0]
    if status == "pending":
        transaction.changed.add("results")
    elif status == "in_progress":
        transaction.changed.add("cancels")
    return [status in {"pending", "in_progress"}]


async def cancelled_before(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[bool] | None:
    """Return the answers of a `cancel` whose answer was lost; ``None`` if it did nothing."""
    rows = await _settled_states(transaction, task_ids)
    for _, _, status, _, is_requested in rows:
        if is_requested or status == "cancelled":
            transaction.changed.add("cancels" if is_requested else "results")
            return [True]
    return None


async def _settled_states(transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]) -> list[Row]:
    """Return the states of tasks that a lost statement cannot change any more."""
    # If the server's process is unknown, it was not ended: the statement may still be committed.
    is_ended = transaction.connection.process is not None
    statement = _sql.STATES if is_ended else _sql.SETTLED_STATES
    return await transaction.rows(statement, list(task_ids))


async def set_progress(
    transaction: PgTransaction, notes: Sequence[tuple[Lease, Progress]]
) -> list[bool | None]:
    """Store the progress of an attempt that is current; ``None`` if the task is locked."""
    ((lease, progress),) = notes
    text = progress.model_dump_json()
    if await transaction.rows(_sql.SET_PROGRESS, lease.task_id, lease.epoch, text):
        return [True]
    return [None if await _passed_over(transaction, (lease,)) else False]


async def get_tasks(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[TaskInfo | None]:
    """Return the info of each task, or ``None`` for one that does not exist."""
    infos = {row[0]: to_info(row) for row in await transaction.rows(_sql.INFOS, list(task_ids))}
    return [infos.get(task_id) for task_id in task_ids]


async def get_results(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> dict[TaskId[Any], Result[Any] | None]:
    """Return the results of the tasks that exist; ``None`` for one that is not final."""
    rows = await transaction.rows(_sql.RESULTS, list(task_ids))
    return {TaskId(row[0]): to_result(row) for row in rows}


async def load_task(transaction: PgTransaction, task_id: TaskId[Any]) -> Task:
    """Return a task as it was enqueued."""
    rows = await transaction.rows(_sql.STORED, task_id)
    if not rows:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return to_task(rows[0])


_by_number: Final = itemgetter(0)


async def reserve(
    transaction: PgTransaction, requests: Sequence[ReserveRequest]
) -> list[Reservation]:
    """Reserve due tasks for one request."""
    (request,) = requests
    last = (request.limit, request.lease, request.ticket)
    if request.queues == ALL_QUEUES:
        rows = await transaction.rows(_sql.RESERVE_ALL, transaction.moment, request.worker, *last)
    else:
        queues = list(dict.fromkeys(request.queues))
        rows = await transaction.rows(
            _sql.RESERVE, transaction.moment, request.worker, queues, *last
        )
    wait = rows.pop()[-1]
    return [Reservation(await _readable(transaction, rows, request.ticket), wait)]


async def reserved_before(
    transaction: PgTransaction, requests: Sequence[ReserveRequest]
) -> list[Reservation] | None:
    """Return the answers of a `reserve` whose answer was lost; ``None`` if it did nothing."""
    (request,) = requests
    rows = await transaction.rows(_sql.RESERVED, request.ticket)
    return [Reservation(await _readable(transaction, rows, request.ticket), 0.0)] if rows else None


async def _readable(
    transaction: PgTransaction, rows: list[Row], ticket: int
) -> tuple[ReservedTask, ...]:
    """Return the tasks of the rows that can be read; fail the others.

    A row that was written by hand must not keep other tasks from being reserved.
    """
    rows.sort(key=_by_number)
    tasks: list[ReservedTask] = []
    unreadable: list[str] = []
    for row in rows:
        try:
            tasks.append(to_reserved(row))
        except Exception:  # noqa: BLE001 - see above
            unreadable.append(row[1])
    if unreadable:
        await transaction.rows(
            _sql.FAIL_UNREADABLE, transaction.moment, unreadable, ticket, UNREADABLE
        )
        transaction.changed.add("results")
    return tuple(tasks)


_lease: Final = itemgetter(0)
# In place of a status: another transaction has locked the task.
_HELD: Final = "held"
_RETURNS: Final = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}


async def finish(transaction: PgTransaction, outcomes: Sequence[Outcome]) -> list[bool | None]:
    """End attempts, in one statement; of two outcomes for one lease the first counts.

    ``None``: another transaction has locked the task, and the outcome has to be sent again.
    """
    return await _finish(transaction, outcomes, _sql.FINISH)


async def finish_all(transaction: PgTransaction, outcomes: Sequence[Outcome]) -> list[bool | None]:
    """End attempts, in one statement that waits for locked tasks."""
    return await _finish(transaction, outcomes, _sql.FINISH_ALL)


async def _finish(
    transaction: PgTransaction, outcomes: Sequence[Outcome], statement: str
) -> list[bool | None]:
    if not outcomes:
        return []
    firsts = _firsts(outcomes)
    batch = firsts.values()
    topics: set[Topic] = {"results"}
    values: list[list[Any]] = [[outcome.value or b"" for outcome in batch]]
    if all(outcome.kind is OutcomeKind.SUCCESS for outcome in batch):
        # A task that a user's transaction completes gets no second success from its worker. So
        # these are never locked for long, and the statement may wait.
        statement = _sql.SUCCEED
    else:
        values.insert(0, [outcome.kind.value for outcome in batch])
        values.append([storable(outcome.error) for outcome in batch])
        values.append([storable(outcome.traceback) for outcome in batch])
        values.append([outcome.delay for outcome in batch])
        if any(outcome.kind in _RETURNS for outcome in batch):
            topics.add("tasks")
    rows = await transaction.rows(
        statement,
        transaction.moment,
        [lease.task_id for lease in firsts],
        [lease.epoch for lease in firsts],
        *values,
        *transaction.news(topics),
    )
    ends: dict[tuple[str, int], bool | None] = {}
    for task_id, epoch, status, _ in rows:
        ends[task_id, epoch] = None if status == _HELD else True
        if status != _HELD:
            transaction.changed.add("tasks" if status == "pending" else "results")
    return _answers(outcomes, firsts, ends)


def _firsts(outcomes: Sequence[Outcome]) -> dict[Lease, Outcome]:
    """Return the outcomes that count, sorted by lease so that batches cannot deadlock."""
    firsts: dict[Lease, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.lease, outcome)
    return dict(sorted(firsts.items(), key=_lease))


def _answers(
    outcomes: Sequence[Outcome],
    firsts: Mapping[Lease, Outcome],
    ends: Mapping[tuple[str, int], bool | None],
) -> list[bool | None]:
    """Return an answer for each outcome; ``ends`` has those of the ones that count."""
    return [
        ends.get(outcome.lease, False) if firsts[outcome.lease] is outcome else False
        for outcome in outcomes
    ]


async def finished_before(
    transaction: PgTransaction, outcomes: Sequence[Outcome]
) -> list[bool | None] | None:
    """Return the answers of a `finish` whose answer was lost; ``None`` if it did nothing.

    A batch is one statement: if some attempts have ended, those still open were skipped by it.
    """
    ids = [outcome.task_id for outcome in outcomes]
    rows = {row[0]: row[1:] for row in await _settled_states(transaction, ids)}
    still_open = {(task_id, row[0]) for task_id, row in rows.items() if row[1] == "in_progress"}
    if all(outcome.lease in still_open for outcome in outcomes):
        return None
    transaction.changed.update(("tasks", "results"))
    firsts = _firsts(outcomes)
    ends: dict[tuple[str, int], bool | None] = {
        lease: None if lease in still_open else _is_outcome(rows[lease.task_id], outcome)
        for lease, outcome in firsts.items()
        if lease.task_id in rows
    }
    return _answers(outcomes, firsts, ends)


def _is_outcome(row: Row, outcome: Outcome) -> bool:
    """Return whether a task's row is as this outcome would leave it."""
    epoch, status, error, _ = row
    if epoch != outcome.epoch:
        # It was started again since, so this outcome must have made it pending.
        return epoch > outcome.epoch and outcome.kind in _RETURNS
    has_failed = status == "failed" and error == storable(outcome.error)
    if outcome.kind is OutcomeKind.FAILURE:
        return bool(has_failed)
    if outcome.kind in _RETURNS:
        has_no_retry_left = has_failed and outcome.kind is OutcomeKind.RETRY
        return has_no_retry_left or status in {"pending", "cancelled"}
    return bool(status == ("success" if outcome.kind is OutcomeKind.SUCCESS else "cancelled"))
