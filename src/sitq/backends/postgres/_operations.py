"""The operations of the PostgreSQL store: each is one statement, and so one transaction.

A unit takes a batch and gives one answer an item. What may be asked for by many callers at once
(`BATCHED`) is joined into one batch; the others go one by one.
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
from sitq.backends.postgres._rows import (
    columns,
    common_columns,
    storable,
    to_info,
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
    OutcomeKind,
    Progress,
    Reservation,
    Result,
    Task,
    TaskInfo,
)
from sitq.protocols import Sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sitq.backends._operations import PruneRequest, ReserveRequest, SweepRequest
    from sitq.backends.postgres._connection import PgConnection, Row
    from sitq.backends.postgres._notify_throttle import NotifyThrottle
    from sitq.backends.postgres._sql import Statements
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
    """Where a unit of work runs, the moment it judges by, and what it has changed.

    ``moment`` is that of a test's clock; ``None``: the server's clock counts. ``notified`` are the
    topics that its statement tells if it changes them; of these ``deferred`` have to be told
    anyhow.
    ``is_sent`` is true once a statement may have reached the server, ``has_committed`` once one of
    them has been carried out.
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
        """Run one statement, and return what it gives."""
        self.is_sent = True
        rows = await self.connection.fetch(self.statements[sql], parameters)
        self.has_committed = True
        return rows

    def news(self, topics: Iterable[Topic]) -> tuple[str, list[str]]:
        """What a statement is to tell, and the channels, if these topics change with it."""
        channels, notified, deferred = self.throttle.notify_with(topics)
        self.notified |= notified
        self.deferred |= deferred
        return self.throttle.token, channels


# A renewal looks again at what somebody else holds, after these shares of the lease; in seconds,
# the longest pause.
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
            await transaction.rows(_sql.INSERT_ONE_AND_TELL, *values, token, channels[0])
        else:
            await transaction.rows(_sql.INSERT_ONE, *values)


async def enqueue_unique(
    transaction: PgTransaction, batches: Sequence[Sequence[Task]]
) -> list[list[TaskId[Any]] | None]:
    """Store tasks of which some have unique keys; one that is held gives its holder's id.

    ``None``: nothing is stored yet, since an open transaction has stored one of the keys. Who asks
    again waits for its end, and keeps nobody else from storing tasks with other keys.
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
    """What an `enqueue` whose answer was lost has done; ``None``: nothing.

    Ids are new, and what was sent together is stored as a whole or not at all: one of its tasks
    tells of all.
    """
    tasks = list(chain.from_iterable(batches))
    stored = {row[0] for row in await transaction.rows(_sql.EXISTING, ids_of(tasks))}
    if not stored:
        return None
    # Those that are missing gave way to holders of their keys: it is safe to ask for them again.
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
    """Renew the leases that are current and tell of each how it stands."""
    states: dict[tuple[str, int], LeaseState] = {}
    left = set(leases)
    # What is at a task now is over in a moment, most often.
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
    """Those that a statement has found locked, of the leases that it has not told of.

    An epoch is current for one stretch of time: what is current now has been so then.
    """
    missed = set(leases)
    if not missed:
        return missed
    rows = await transaction.rows(_sql.STANDINGS, [lease.task_id for lease in missed])
    return missed & {Lease(row[0], row[1]) for row in rows if row[2] == "in_progress"}


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
    """Cancel a task that waits; ask one that runs to end. ``None``: somebody else holds it."""
    (task_id,) = task_ids
    rows = await transaction.rows(_sql.CANCEL, transaction.moment, task_id)
    if not rows:
        if await transaction.rows(_sql.STANDINGS, [task_id]):
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
    """What a `cancel` whose answer was lost has done; ``None``: nothing."""
    rows = await transaction.rows(_sql.STANDINGS, list(task_ids))
    if not rows:
        return None
    _, _, status, _, asked = rows[0]
    if status != "cancelled" and not asked:
        return None
    transaction.changed.add("cancels" if asked else "results")
    return [True]


async def set_progress(
    transaction: PgTransaction, notes: Sequence[tuple[Lease, Progress]]
) -> list[bool | None]:
    """Note the progress of an attempt that is current. ``None``: somebody else holds the task."""
    ((lease, progress),) = notes
    text = progress.model_dump_json()
    if await transaction.rows(_sql.SET_PROGRESS, lease.task_id, lease.epoch, text):
        return [True]
    return [None if await _passed_over(transaction, (lease,)) else False]


async def get_tasks(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> list[TaskInfo | None]:
    """What is known of each task."""
    infos = {row[0]: to_info(row) for row in await transaction.rows(_sql.INFOS, list(task_ids))}
    return [infos.get(task_id) for task_id in task_ids]


async def get_results(
    transaction: PgTransaction, task_ids: Sequence[TaskId[Any]]
) -> dict[TaskId[Any], Result[Any] | None]:
    """The results of the tasks that are known."""
    rows = await transaction.rows(_sql.RESULTS, list(task_ids))
    return {TaskId(row[0]): to_result(row) for row in rows}


async def load_task(transaction: PgTransaction, task_id: TaskId[Any]) -> Task:
    """A task as it was enqueued."""
    rows = await transaction.rows(_sql.STORED, task_id)
    if not rows:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return to_task(rows[0])


_by_number: Final = itemgetter(0)


async def reserve(
    transaction: PgTransaction, requests: Sequence[ReserveRequest]
) -> list[Reservation]:
    """Reserve due tasks for one wish."""
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
    """What a `reserve` whose answer was lost has done; ``None``: nothing."""
    (request,) = requests
    rows = await transaction.rows(_sql.RESERVED, request.ticket)
    return [Reservation(await _readable(transaction, rows, request.ticket), 0.0)] if rows else None


async def _readable(
    transaction: PgTransaction, rows: list[Row], ticket: int
) -> tuple[ReservedTask, ...]:
    """The tasks of the rows that can be read; the others are failed.

    Somebody may have written into the table by hand: such a row must not stand in the way of
    its neighbours.
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
# In place of a status: somebody else holds the task.
_HELD: Final = "held"
_RETURNS: Final = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}
_FINAL: Final = {
    OutcomeKind.SUCCESS: "success",
    OutcomeKind.FAILURE: "failed",
    OutcomeKind.CANCELLED: "cancelled",
}


async def finish(transaction: PgTransaction, outcomes: Sequence[Outcome]) -> list[bool | None]:
    """End attempts, in one statement; of two outcomes for one lease the first is heard.

    ``None``: somebody else holds the task at this moment, and the outcome is to be sent again.
    """
    if not outcomes:
        return []
    firsts = _firsts(outcomes)
    batch = list(firsts.values())
    if all(outcome.kind is OutcomeKind.SUCCESS for outcome in batch):
        # Who completes a task in a transaction of their own reports no success besides: nobody
        # holds one of these for long.
        rows = await _succeed(transaction, batch)
    else:
        rows = await _finish(transaction, batch, _sql.FINISH)
    held = {(row[0], row[1]) for row in rows if row[2] == _HELD}
    return _answers(outcomes, firsts, _accepted(transaction, rows), held)


async def finish_all(transaction: PgTransaction, outcomes: Sequence[Outcome]) -> list[bool]:
    """End attempts, in one statement that waits for whoever holds one of them."""
    firsts = _firsts(outcomes)
    rows = await _finish(transaction, list(firsts.values()), _sql.FINISH_ALL)
    accepted = _accepted(transaction, rows)
    return [answer is True for answer in _answers(outcomes, firsts, accepted)]


def _firsts(outcomes: Sequence[Outcome]) -> dict[Lease, Outcome]:
    """The outcomes that are heard, in one order everywhere: no batches lock each other out."""
    firsts: dict[Lease, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.lease, outcome)
    return dict(sorted(firsts.items(), key=_lease))


def _accepted(transaction: PgTransaction, rows: list[Row]) -> set[tuple[str, int]]:
    """The leases whose outcomes have counted; what has changed with them is noted."""
    ended = [row for row in rows if row[2] != _HELD]
    transaction.changed.update("tasks" if row[2] == "pending" else "results" for row in ended)
    return {(row[0], row[1]) for row in ended}


def _answers(
    outcomes: Sequence[Outcome],
    firsts: Mapping[Lease, Outcome],
    accepted: Collection[tuple[str, int]],
    held: Collection[tuple[str, int]] = (),
) -> list[bool | None]:
    answers: list[bool | None] = []
    for outcome in outcomes:
        is_first = firsts[outcome.lease] is outcome
        answers.append(
            None if is_first and outcome.lease in held else is_first and outcome.lease in accepted
        )
    return answers


async def _succeed(transaction: PgTransaction, batch: list[Outcome]) -> list[Row]:
    return await transaction.rows(
        _sql.SUCCEED,
        transaction.moment,
        [outcome.task_id for outcome in batch],
        [outcome.epoch for outcome in batch],
        [outcome.value or b"" for outcome in batch],
        *transaction.news(["results"]),
    )


async def _finish(transaction: PgTransaction, batch: list[Outcome], statement: str) -> list[Row]:
    topics: set[Topic] = {"results"}
    if any(outcome.kind in _RETURNS for outcome in batch):
        topics.add("tasks")
    return await transaction.rows(
        statement,
        transaction.moment,
        [outcome.task_id for outcome in batch],
        [outcome.epoch for outcome in batch],
        [outcome.kind.value for outcome in batch],
        [outcome.value or b"" for outcome in batch],
        [storable(outcome.error) for outcome in batch],
        [storable(outcome.traceback) for outcome in batch],
        [outcome.delay for outcome in batch],
        *transaction.news(sorted(topics)),
    )


async def finished_before(
    transaction: PgTransaction, outcomes: Sequence[Outcome]
) -> list[bool | None] | None:
    """What a `finish` whose answer was lost has done; ``None``: nothing.

    A batch is one statement. An attempt that is still open was passed over by it, or all are.
    """
    ids = [outcome.task_id for outcome in outcomes]
    rows = {row[0]: row[1:] for row in await transaction.rows(_sql.STANDINGS, ids)}
    open_ones = {(task_id, row[0]) for task_id, row in rows.items() if row[1] == "in_progress"}
    if all(outcome.lease in open_ones for outcome in outcomes):
        return None
    transaction.changed.update(("tasks", "results"))
    firsts = _firsts(outcomes)
    accepted = {
        (outcome.task_id, outcome.epoch)
        for outcome in firsts.values()
        if outcome.task_id in rows and _bears(rows[outcome.task_id], outcome)
    }
    return _answers(outcomes, firsts, accepted, open_ones)


def _bears(row: Row, outcome: Outcome) -> bool:
    """Tell if a task looks as this outcome leaves it."""
    epoch, status, error, _ = row
    if epoch != outcome.epoch:
        # It has gone on since. Only what has made it pending can have let it.
        return epoch > outcome.epoch and outcome.kind in _RETURNS
    if outcome.kind is OutcomeKind.RETRY:
        spent = status == "failed" and error == storable(outcome.error)
        return spent or status in {"pending", "cancelled"}
    if outcome.kind in _RETURNS:
        return status in {"pending", "cancelled"}
    if outcome.kind is OutcomeKind.FAILURE:
        return bool(status == "failed" and error == storable(outcome.error))
    return bool(status == _FINAL[outcome.kind])
