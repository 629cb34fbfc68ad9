"""The units of work of the SQLite store: each runs whole in the database thread.

A unit takes a batch and gives one answer an item; requests that wait at the same time are
joined into one batch. `now` comes in with the `Work`; no unit reads a clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sitq._alike import has_keys, ids_of, join, split
from sitq.backends._texts import LOST_ERROR
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._inserts import (
    INSERT_UNIQUE,
    KEY_HOLDER,
    RELEASE_KEY,
    insertion,
    values_of,
)
from sitq.backends.sqlite._rows import EXPIRED, dump_rows, to_info, to_result, to_task
from sitq.errors import TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import (
    Lease,
    LeaseState,
    Progress,
    Result,
    Task,
    TaskInfo,
)
from sitq.protocols import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.backends.sqlite._work import Work

__all__ = [
    "Prune",
    "SweepLimits",
    "enqueue",
    "get_results",
    "get_stored",
    "get_tasks",
    "prune",
    "renew",
    "set_progress",
    "sweep",
    "sweep_is_due",
]


class SweepLimits(NamedTuple):
    """The bounds of one sweep.

    ``asked_at`` (microseconds) is the moment of the call: what has become due only since then is
    left to the next sweep, for which the callers' heartbeats have had their chance.
    """

    max_crashes: int
    limit: int
    asked_at: int


class Prune(NamedTuple):
    """What to prune by age."""

    older_than: float
    limit: int


def enqueue(work: Work, batches: list[Sequence[Task]]) -> list[list[TaskId[Any]]]:
    """Store batches of tasks; a unique key that is held gives its holder's id."""
    tasks = join(batches)
    work.stored.update(ids_of(tasks))
    if has_keys(tasks):
        return split([_insert_unique(work, task) for task in tasks], batches)
    if tasks:
        work.execute(*insertion(tasks, work.now))
    return [ids_of(batch) for batch in batches]


def _insert_unique(work: Work, task: Task) -> TaskId[Any]:
    values = values_of(task, work.now)
    if work.execute(INSERT_UNIQUE, values).rowcount:
        return task.id
    key = {"key": task.unique_key, "id": task.id, "now": work.now}
    holder, seq, change = work.execute(KEY_HOLDER, key).fetchone()
    if change is None:
        return TaskId(holder)
    if change == "expire":
        work.execute(_sql.SET_FINAL, {**EXPIRED, "seq": seq, "now": work.now})
        work.changed.add("results")
    else:
        work.execute(RELEASE_KEY, {"seq": seq})
    work.execute(INSERT_UNIQUE, values)
    return task.id


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
    now = min(work.now, limits.asked_at)
    bounds = {"now": now, "limit": limits.limit}
    ended = [seq for (seq,) in work.execute(_sql.ENDED_LEASES, bounds).fetchall()]
    if ended:
        rows = dump_rows(ended)
        work.execute(
            _sql.RECLAIM,
            {
                "rows": rows,
                "now": work.now,
                "max_crashes": limits.max_crashes,
                "error": LOST_ERROR,
            },
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
    rows = work.rows(_sql.INFOS, {"rows": dump_rows(task_ids)})
    infos = {row[0]: to_info(row) for row in rows}
    return [infos.get(task_id) for task_id in task_ids]


def get_results(
    work: Work, task_ids: Sequence[TaskId[Any]]
) -> dict[TaskId[Any], Result[Any] | None]:
    """The results of the tasks that are known."""
    rows = work.rows(_sql.RESULTS, {"rows": dump_rows(task_ids)})
    return {TaskId(row[0]): to_result(row) for row in rows}


def get_stored(work: Work, task_id: TaskId[Any]) -> Task:
    """A task as it was enqueued."""
    rows = work.rows(_sql.STORED, (task_id,))
    if not rows:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    return to_task(rows[0])
