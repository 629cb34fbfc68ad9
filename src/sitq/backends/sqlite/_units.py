"""The units of work of the SQLite store: each runs whole in the database thread.

A unit takes a batch and gives one answer an item; requests that wait at the same time are
joined into one batch. `now` comes in with the `Work`; no unit reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._rows import (
    Row,
    cut,
    dump_rows,
    to_info,
    to_micros,
    to_reserved,
    to_result,
    to_row,
    to_task,
)
from sitq.errors import TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import (
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
from sitq.protocols import Sweep, Topic

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

__all__ = [
    "Prune",
    "Reserve",
    "SweepLimits",
    "Work",
    "cancel",
    "enqueue",
    "finish",
    "get_results",
    "get_stored",
    "get_tasks",
    "prune",
    "renew",
    "reserve",
    "set_progress",
    "sweep",
    "sweep_is_due",
]

LOST_ERROR: Final = (
    "LeaseLostError: {crashes} workers that ran this task died or hung before they reported"
)


@dataclass(slots=True)
class Work:
    """One transaction: where it runs, the moment it judges by, and what it has changed."""

    connection: sqlite3.Connection
    moment: datetime
    changed: set[Topic] = field(default_factory=set)

    @property
    def now(self) -> int:
        """The moment in microseconds."""
        return to_micros(self.moment)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)


class Reserve(NamedTuple):
    """A wish for due tasks."""

    worker: str
    queues: tuple[str, ...]
    limit: int
    lease: float


class SweepLimits(NamedTuple):
    """The bounds of one sweep."""

    max_crashes: int
    limit: int


class Prune(NamedTuple):
    """What to prune by age."""

    older_than: float
    limit: int


def enqueue(work: Work, tasks: list[Task]) -> list[TaskId[Any]]:
    """Store tasks; a unique key that is held gives its holder's id."""
    if not tasks:
        return []
    work.changed.add("tasks")
    if all(task.unique_key is None for task in tasks):
        _insert(work, _sql.INSERT_BATCH, tasks)
        return [task.id for task in tasks]
    return [_insert_unique(work, task) for task in tasks]


def _insert(work: Work, sql: str, tasks: list[Task]) -> int:
    blob, places = cut(task.payload for task in tasks)
    rows = dump_rows([to_row(task, place) for task, place in zip(tasks, places, strict=True)])
    return work.execute(sql, {"rows": rows, "blob": blob, "now": work.now}).rowcount


def _insert_unique(work: Work, task: Task) -> TaskId[Any]:
    if _insert(work, _sql.INSERT_UNIQUE, [task]):
        return task.id
    (holder,) = work.execute(_sql.KEY_HOLDER, (task.unique_key,)).fetchone()
    return TaskId(holder)


def reserve(work: Work, wishes: list[Reserve]) -> list[Reservation]:
    """Reserve due tasks for each wish in turn."""
    return [_reserve(work, wish) for wish in wishes]


def _reserve(work: Work, wish: Reserve) -> Reservation:
    now = work.now
    rows, wait = _due(work, wish, now)
    if rows:
        seqs = dump_rows([row[0] for row in rows])
        ends_at = now + round(wish.lease * 1_000_000)
        work.execute(_sql.MARK_RESERVED, {"rows": seqs, "now": now})
        work.execute(
            _sql.INSERT_LEASES, {"rows": seqs, "worker": wish.worker, "ends_at": ends_at}
        )
    return Reservation(tuple(map(to_reserved, rows)), wait)


def _due(work: Work, wish: Reserve, now: int) -> tuple[list[Row], float | None]:
    """The due rows in order, and the seconds until the next one.

    Goes from priority to priority, each a seek in the index, so that tasks that are not due
    yet are never scanned. One row more than wished for tells if any are left.
    """
    levels = {queue: _level(work, queue, None) for queue in dict.fromkeys(wish.queues)}
    visited: list[tuple[str, int]] = []
    rows: list[Row] = []
    while any(level is not None for level in levels.values()):
        priority = max(level for level in levels.values() if level is not None)
        here = [queue for queue, level in levels.items() if level == priority]
        missing = wish.limit + 1 - len(rows)
        rows += _merge([_due_at(work, queue, priority, now, missing) for queue in here])
        if len(rows) > wish.limit:
            return rows[: wish.limit], 0.0
        for queue in here:
            visited.append((queue, priority))
            levels[queue] = _level(work, queue, priority)
    return rows, _wait(work, visited, now)


def _level(work: Work, queue: str, below: int | None) -> int | None:
    """The highest priority in use in a queue, or the highest below another."""
    if below is None:
        row = work.execute(_sql.TOP_PRIORITY, (queue,)).fetchone()
    else:
        row = work.execute(_sql.NEXT_PRIORITY, (queue, below)).fetchone()
    return None if row is None else row[0]


def _due_at(work: Work, queue: str, priority: int, now: int, limit: int) -> list[Row]:
    where = {"queue": queue, "priority": priority, "now": now, "limit": limit}
    return work.execute(_sql.DUE, where).fetchall()


def _merge(lists: list[list[Row]]) -> list[Row]:
    """Rows of one priority out of several queues, by eta and insertion."""
    if len(lists) == 1:
        return lists[0]
    return sorted((row for rows in lists for row in rows), key=lambda row: (row[8], row[0]))


def _wait(work: Work, levels: list[tuple[str, int]], now: int) -> float | None:
    etas = [
        row[0]
        for queue, priority in levels
        if (
            row := work.execute(
                _sql.NEXT_ETA, {"queue": queue, "priority": priority, "now": now}
            ).fetchone()
        )
    ]
    return (min(etas) - now) / 1_000_000 if etas else None


def finish(work: Work, outcomes: list[Outcome]) -> list[bool]:
    """End attempts, in one statement where all of them went well."""
    if all(outcome.kind is OutcomeKind.SUCCESS for outcome in outcomes) and _succeed(
        work, outcomes
    ):
        work.changed.add("results")
        return [True] * len(outcomes)
    return [_finish_one(work, outcome) for outcome in outcomes]


def _succeed(work: Work, outcomes: list[Outcome]) -> bool:
    """Store a batch of successes, or nothing if one of them is not acceptable."""
    blob, places = cut(outcome.value or b"" for outcome in outcomes)
    rows = dump_rows(
        [
            (outcome.task_id, outcome.epoch, *place)
            for outcome, place in zip(outcomes, places, strict=True)
        ]
    )
    work.execute("SAVEPOINT batch")
    accepted = work.execute(
        _sql.SUCCEED_BATCH, {"rows": rows, "blob": blob, "now": work.now}
    ).rowcount
    if accepted != len(outcomes):
        work.execute("ROLLBACK TO batch")
        work.execute("RELEASE batch")
        return False
    work.execute(_sql.DELETE_LEASES, {"rows": rows})
    work.execute("RELEASE batch")
    return True


def _finish_one(work: Work, outcome: Outcome) -> bool:
    attempt = work.execute(
        _sql.OPEN_ATTEMPT, {"id": outcome.task_id, "epoch": outcome.epoch}
    ).fetchone()
    if attempt is None:
        return False
    seq, attempts, max_attempts, cancelled = attempt
    kind = outcome.kind
    eta = work.now + round(outcome.delay * 1_000_000)
    if kind is OutcomeKind.RETRY and max_attempts is not None and attempts >= max_attempts:
        kind = OutcomeKind.FAILURE
    if cancelled and kind in {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.MISS}:
        kind = OutcomeKind.CANCELLED
    if kind is OutcomeKind.RETRY:
        parameters = {
            "seq": seq, "eta": eta, "error": outcome.error, "traceback": outcome.traceback,
        }  # fmt: skip
        work.execute(_sql.SET_RETRY, parameters)
    elif kind is OutcomeKind.RELEASE:
        work.execute(_sql.SET_RELEASED, {"seq": seq})
    elif kind is OutcomeKind.MISS:
        work.execute(_sql.SET_MISSED, {"seq": seq, "eta": eta})
    else:
        _set_final(work, seq, kind, outcome)
    work.execute(_sql.DELETE_LEASE, (seq,))
    work.changed.add("results" if kind in _FINAL else "tasks")
    return True


_FINAL: Final = {
    OutcomeKind.SUCCESS: "success",
    OutcomeKind.FAILURE: "failed",
    OutcomeKind.CANCELLED: "cancelled",
}


def _set_final(work: Work, seq: int, kind: OutcomeKind, outcome: Outcome) -> None:
    parameters = {
        "seq": seq,
        "now": work.now,
        "status": _FINAL[kind],
        "value": (outcome.value or b"") if kind is OutcomeKind.SUCCESS else None,
        "error": outcome.error if kind is OutcomeKind.FAILURE else None,
        "traceback": outcome.traceback if kind is OutcomeKind.FAILURE else None,
    }
    work.execute(_sql.SET_FINAL, parameters)


def renew(work: Work, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
    """Renew the leases that are current and tell of each how it stands."""
    rows = dump_rows(leases)
    ends_at = work.now + round(seconds * 1_000_000)
    work.execute(_sql.RENEW, {"rows": rows, "ends_at": ends_at})
    current = {
        (task_id, epoch): LeaseState.CANCEL_REQUESTED if cancelled else LeaseState.HELD
        for task_id, epoch, cancelled in work.execute(_sql.LEASE_STATES, {"rows": rows}).fetchall()
    }
    return [current.get(lease, LeaseState.LOST) for lease in leases]


def sweep_is_due(work: Work) -> bool:
    """Tell if a sweep would find anything to do."""
    return bool(work.execute(_sql.SWEEP_DUE, {"now": work.now}).fetchone()[0])


def sweep(work: Work, limits: list[SweepLimits]) -> list[Sweep]:
    """Reclaim, expire and prune."""
    return [_sweep(work, each) for each in limits]


def _sweep(work: Work, limits: SweepLimits) -> Sweep:
    bounds = {"now": work.now, "limit": limits.limit}
    ended = [seq for (seq,) in work.execute(_sql.ENDED_LEASES, bounds).fetchall()]
    if ended:
        rows = dump_rows(ended)
        error = LOST_ERROR.format(crashes=limits.max_crashes)
        work.execute(
            _sql.RECLAIM,
            {"rows": rows, "now": work.now, "max_crashes": limits.max_crashes, "error": error},
        )
        work.execute(_sql.DELETE_ENDED, {"rows": rows})
    expired = work.execute(_sql.EXPIRE, bounds).rowcount
    pruned = work.execute(_sql.PRUNE, bounds).rowcount
    if ended:
        work.changed.update(("tasks", "results"))
    if expired:
        work.changed.add("results")
    return Sweep(len(ended), expired, pruned)


def prune(work: Work, wishes: list[Prune]) -> list[int]:
    """Remove final tasks by age."""
    return [
        work.execute(
            _sql.PRUNE_OLDER,
            {"before": work.now - round(wish.older_than * 1_000_000), "limit": wish.limit},
        ).rowcount
        for wish in wishes
    ]


def cancel(work: Work, task_ids: list[TaskId[Any]]) -> list[bool]:
    """Cancel tasks that wait; ask those that run to end."""
    return [_cancel(work, task_id) for task_id in task_ids]


def _cancel(work: Work, task_id: TaskId[Any]) -> bool:
    row = work.execute(_sql.STATUS, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    seq, status = row
    if status == "pending":
        end = Outcome(task_id=task_id, epoch=0, kind=OutcomeKind.CANCELLED)
        _set_final(work, seq, OutcomeKind.CANCELLED, end)
        work.changed.add("results")
        return True
    if status == "in_progress":
        work.execute(_sql.REQUEST_CANCEL, (seq,))
        work.changed.add("cancels")
        return True
    return False


def set_progress(work: Work, notes: list[tuple[Lease, Progress]]) -> list[bool]:
    """Note the progress of attempts that are current."""
    return [
        work.execute(
            _sql.SET_PROGRESS,
            {"id": lease.task_id, "epoch": lease.epoch, "progress": progress.model_dump_json()},
        ).rowcount
        == 1
        for lease, progress in notes
    ]


def get_tasks(work: Work, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
    """What is known of each task."""
    rows = work.execute(_sql.INFOS, {"rows": dump_rows(task_ids)}).fetchall()
    infos = {row[0]: to_info(row) for row in rows}
    return [infos.get(task_id) for task_id in task_ids]


def get_results(
    work: Work, task_ids: Sequence[TaskId[Any]]
) -> dict[TaskId[Any], Result[Any] | None]:
    """The results of the tasks that are known."""
    rows = work.execute(_sql.RESULTS, {"rows": dump_rows(task_ids)}).fetchall()
    return {TaskId(row[0]): to_result(row) for row in rows}


def get_stored(work: Work, task_id: TaskId[Any]) -> Task:
    """A task as it was enqueued."""
    row = work.execute(_sql.STORED, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return to_task(row)
