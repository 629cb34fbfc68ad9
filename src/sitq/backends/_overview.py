"""The overview of a store, made of what it has counted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sitq.administration import (
    Count,
    Overview,
    QueueInfo,
    QueuePause,
    UnknownFunction,
    WorkerInfo,
    WorkerReport,
    WorkerState,
)
from sitq.ids import TaskId
from sitq.models import ALL_QUEUES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


__all__ = [
    "COUNT_CAP",
    "HEAD",
    "OverviewParts",
    "capped",
    "make_order",
    "make_overview",
    "make_worker",
]

COUNT_CAP: Final = 10_001
"""Counts of an overview end here."""
HEAD: Final = 20
"""The functions of so many tasks of a queue are looked at: those that come first."""
# A worker is lost that has not reported for so many of its leases.
_LOST_AFTER: Final = 1.5
_SHOWN_TASKS: Final = 1000


def capped(number: int, cap: int, as_of: datetime) -> Count:
    """Return a count that ends at a cap."""
    return Count(min(number, cap), exact=number < cap, as_of=as_of)


@dataclass(slots=True)
class OverviewParts:
    """What a store has counted.

    Args:
        due: how many tasks of each queue are due.
        scheduled: how many have an eta to come.
        running: how many are in progress.
        oldest: for how many seconds the first due task has waited.
        heads: queues and functions of the tasks that come first.
        searched: how many tasks wait for a retry, and how many have failed, by these statuses.
    """

    due: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    scheduled: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    running: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, float] = field(default_factory=dict)
    heads: set[tuple[str, str]] = field(default_factory=set)
    searched: dict[str, Count] = field(default_factory=dict)

    def missing_heads(self, queue: str) -> tuple[int, int]:
        """Return of how many more due and scheduled tasks of a queue to look at the functions."""
        return max(0, HEAD - self.due[queue]), max(0, HEAD - self.scheduled[queue])

    def add_level(self, queue: str, due: int, scheduled: int, oldest: float | None) -> None:
        """Add the pending tasks of one queue and one priority."""
        self.due[queue] += due
        self.scheduled[queue] += scheduled
        if oldest is not None:
            self.oldest[queue] = max(self.oldest.get(queue, 0.0), oldest)


def make_overview(
    parts: OverviewParts,
    workers: Sequence[WorkerInfo],
    pauses: Sequence[QueuePause],
    now: datetime,
) -> Overview:
    """Return the overview of a store."""

    def count(number: int) -> Count:
        return capped(number, COUNT_CAP, now)

    alive = [worker for worker in workers if worker.state is not WorkerState.LOST]
    paused = {pause.queue: pause for pause in pauses}
    active = [worker for worker in alive if worker.state is WorkerState.ACTIVE]
    named = {name for worker in alive for name in worker.queues if name != "*"}
    names = sorted({*parts.due, *parts.scheduled, *parts.running, *paused, *named})
    queues = tuple(
        QueueInfo(
            name=name,
            due=count(parts.due.get(name, 0)),
            scheduled=count(parts.scheduled.get(name, 0)),
            in_progress=count(parts.running.get(name, 0)),
            oldest_due_age=parts.oldest.get(name),
            pause=paused.get(name),
            workers=sum(_serves(worker, name) for worker in active),
        )
        for name in names
    )
    totals = {
        "scheduled": count(sum(parts.scheduled.values())),
        "due": count(sum(parts.due.values())),
        "retrying": parts.searched["retrying"],
        "in_progress": count(sum(parts.running.values())),
        "failed": parts.searched["failed"],
    }
    return Overview(
        queues=queues,
        workers=tuple(workers),
        totals=totals,
        unserved=tuple(each.name for each in queues if each.due.value and not each.workers),
        unknown_functions=_unknown_functions(parts.heads, active),
        as_of=now,
    )


def _serves(worker: WorkerInfo, queue: str) -> bool:
    return worker.queues == ALL_QUEUES or queue in worker.queues


def _unknown_functions(
    heads: set[tuple[str, str]], active: Sequence[WorkerInfo]
) -> tuple[UnknownFunction, ...]:
    """Return the functions that none of the workers of their queue knows, if it has any."""
    missing = []
    for queue, function in sorted(heads):
        serving = [worker for worker in active if _serves(worker, queue)]
        if serving and not any(function in worker.functions for worker in serving):
            missing.append(UnknownFunction(queue, function))
    return tuple(missing)


def make_order(text: str) -> WorkerState:
    """Return what a worker was ordered to be; ``active`` for what nobody can order."""
    return WorkerState(text) if text in {"quiet", "stopping"} else WorkerState.ACTIVE


def make_worker(
    reported: Mapping[str, Any], seen_at: datetime, tasks: Sequence[str], now: datetime
) -> WorkerInfo:
    """Return what is known of a worker.

    Args:
        reported: the fields of its last report.
        seen_at: when that was.
        tasks: the ids of the tasks that it runs.
        now: the moment to judge by.
    """
    fields = {name: reported[name] for name in WorkerReport.model_fields}
    # A clock may be set back: a worker that lives soon reports by the new time.
    is_lost = abs((now - seen_at).total_seconds()) > fields["lease"] * _LOST_AFTER
    fields["state"] = WorkerState.LOST if is_lost else WorkerState(fields["state"])
    shown = tuple(map(TaskId[Any], tasks[:_SHOWN_TASKS]))
    return WorkerInfo(**fields, seen_at=seen_at, tasks=shown)
