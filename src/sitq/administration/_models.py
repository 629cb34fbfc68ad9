"""The models that stores exchange with administrators and workers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from sitq._builtin_types import plain
from sitq._validation import (
    FunctionName,
    Key,
    Model,
    Moment,
    Priority,
    QueueName,
    describe,
)
from sitq.errors import ValidationError
from sitq.ids import TaskId

if TYPE_CHECKING:
    from datetime import datetime

    from sitq.models import TaskInfo

__all__ = [
    "KEPT_FAILURES",
    "BulkChange",
    "BulkResult",
    "Count",
    "FailedAttempt",
    "Overview",
    "QueueInfo",
    "QueuePause",
    "SkippedTask",
    "StatusFilter",
    "TaskChange",
    "TaskFilter",
    "TaskPage",
    "UnknownFunction",
    "WorkerInfo",
    "WorkerOrders",
    "WorkerReport",
    "WorkerState",
]

KEPT_FAILURES: Final = 10
"""So many failed attempts of a task are kept."""

StatusFilter = Literal[
    "pending",
    "scheduled",
    "due",
    "retrying",
    "in_progress",
    "success",
    "failed",
    "cancelled",
    "expired",
]


class TaskFilter(Model):
    """Select the tasks that match all given fields.

    Args:
        ids: at most 1,000 ids.
        status: a status of `TaskStatus`; or ``scheduled`` (pending, its eta is later than now),
            ``due`` (pending, its eta has come), ``retrying`` (pending, after an attempt failed).
        queue: the name of the queue.
        function: the function's stored name.
        priority: -100 to 100.
        worker: the id of the worker that runs it.
        unique_key: the unique key that it was enqueued with.
        retry_of: the id of the task that it repeats.
        error: the type of the last attempt's error, ``"ValueError"`` say.
        enqueued_after: enqueued at this moment or later.
        enqueued_before: enqueued before this moment.
        finished_after: ended at this moment or later.
        finished_before: ended before this moment.
        eta_after: may start at this moment or later.
        eta_before: may start before this moment.

    Raises:
        ValidationError: a value is out of its range or of the wrong type.
    """

    ids: tuple[TaskId[Any], ...] | None = Field(default=None, max_length=1000)
    status: StatusFilter | None = None
    queue: QueueName | None = None
    function: FunctionName | None = None
    priority: Priority | None = None
    worker: str | None = Field(default=None, pattern=r"^[^\x00]{1,128}$")
    unique_key: Key | None = None
    retry_of: TaskId[Any] | None = None
    error: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f:]{1,256}$")
    enqueued_after: Moment | None = None
    enqueued_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    eta_after: Moment | None = None
    eta_before: Moment | None = None

    if not TYPE_CHECKING:

        def __init__(self, **data: Any) -> None:
            data = {name: plain(value) for name, value in data.items()}
            if isinstance(data.get("ids"), list):
                data["ids"] = tuple(data["ids"])
            try:
                super().__init__(**data)
            except pydantic.ValidationError as error:
                raise ValidationError(f"TaskFilter: {describe(error)}") from None

    @property
    def is_empty(self) -> bool:
        """Return whether the filter matches every task."""
        return all(getattr(self, name) is None for name in type(self).model_fields)

    def narrowed(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; the values are checked."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


class TaskPage(NamedTuple):
    """A part of a list of tasks.

    ``cursor`` is the place to go on from, or ``None`` after the last page; a text of at most 500
    characters that is safe in URLs. A page may have fewer tasks than were asked for, or none, and
    still a cursor: a store looks at a bounded number of rows a call. ``scanned_to`` is then the
    moment when the last row that was looked at was enqueued, and ``None`` otherwise.
    """

    items: tuple[TaskInfo, ...]
    cursor: str | None
    scanned_to: datetime | None


class Count(NamedTuple):
    """A number of tasks.

    ``exact`` is false where counting was ended early: there are ``value`` or more.
    """

    value: int
    exact: bool
    as_of: datetime

    def __str__(self) -> str:
        return f"{self.value:,}" if self.exact else f"at least {self.value:,}"


class QueuePause(Model):
    """Why and since when a queue is paused.

    Args:
        queue: the name of the queue.
        reason: a short text for people, at most 1,000 characters.
        by: who has paused it, at most 256 characters.
        at: when it was paused (UTC).
        until: when it goes on by itself (UTC); ``None``: when it is resumed.
    """

    queue: QueueName
    reason: str = Field(default="", max_length=1000)
    by: str = Field(default="", max_length=256)
    at: Moment
    until: Moment | None = None


class QueueInfo(NamedTuple):
    """A queue with open tasks, with a pause, or with a worker that serves it by its name.

    ``oldest_due_age`` is for how many seconds the task that is due the longest could have started;
    ``None`` if none is due. ``workers`` is the number of active workers that serve it.
    """

    name: str
    due: Count
    scheduled: Count
    in_progress: Count
    oldest_due_age: float | None
    pause: QueuePause | None
    workers: int


class WorkerState(StrEnum):
    """The state of a worker.

    ``active``: it reserves tasks. ``quiet``: it runs what it has, and reserves no more.
    ``stopping``: it ends. ``lost``: it has not reported for more than a lease and a half.
    """

    ACTIVE = "active"
    QUIET = "quiet"
    STOPPING = "stopping"
    LOST = "lost"


class WorkerReport(Model):
    """What a worker says of itself.

    Args:
        id: the worker's id, new for each run.
        host: the name of its host.
        pid: the number of its process there.
        version: the version of sitq.
        queues: the queues that it serves; ``("*",)``: every queue.
        functions: the stored names of the functions that it knows.
        slots: how many tasks it runs at most.
        running: how many tasks it runs now.
        state: its state; it never reports ``lost``.
        lease: the seconds that its leases last: after one and a half it counts as lost.
        started_at: when it was ready (UTC).
    """

    id: str = Field(min_length=1, max_length=128)
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    functions: tuple[str, ...]
    slots: int
    running: int
    state: WorkerState
    lease: float
    started_at: Moment


class WorkerInfo(WorkerReport):
    """What the store knows of a worker.

    Args:
        seen_at: when it reported last (UTC).
        tasks: the ids of the tasks that it holds a lease of, at most 1,000.
    """

    seen_at: Moment
    tasks: tuple[TaskId[Any], ...] = ()


class WorkerOrders(NamedTuple):
    """What a worker is to do: the answer to its report.

    ``state`` is ``active``, or ``quiet`` or ``stopping`` where it was asked for. ``paused`` are the
    names of all queues that are paused.
    """

    state: WorkerState
    paused: frozenset[str]


class UnknownFunction(NamedTuple):
    """A function that no active worker of a queue knows, while one of its tasks waits there."""

    queue: str
    function: str


class Overview(NamedTuple):
    """A summary of the queues, the workers and the numbers of tasks.

    ``totals`` counts the tasks of each status that are open or have failed, as `TaskFilter.status`
    names them. ``unserved`` are the queues with due tasks that no active worker serves.
    ``unknown_functions`` are found among the first 20 due tasks of each queue, and those of its
    first 20 scheduled tasks that a worker has put back since it could not run them.
    """

    queues: tuple[QueueInfo, ...]
    workers: tuple[WorkerInfo, ...]
    totals: dict[str, Count]
    unserved: tuple[str, ...]
    unknown_functions: tuple[UnknownFunction, ...]
    as_of: datetime


class FailedAttempt(Model):
    """An attempt that failed, or whose worker was lost.

    Args:
        number: the number of the attempt, 1 for the first; one whose worker was lost spends none,
            so the next has the same.
        worker: the id of the worker that ran it.
        started_at: when it was reserved (UTC).
        ended_at: when its end was stored (UTC).
        error: its error, ``"ValueError: text"``.
        traceback: the task's own frames, as text.
    """

    number: int
    worker: str | None
    started_at: Moment
    ended_at: Moment
    error: str = Field(repr=False)
    traceback: str | None = Field(default=None, repr=False)


class BulkChange(StrEnum):
    """What a bulk operation does to a task."""

    CANCEL = "cancel"
    DELETE = "delete"
    POSTPONE = "postpone"
    SET_PRIORITY = "set_priority"


class TaskChange(NamedTuple):
    """A change of tasks; ``eta`` is for ``postpone``, ``priority`` for ``set_priority``."""

    kind: BulkChange
    eta: datetime | None = None
    priority: int | None = None


class SkippedTask(NamedTuple):
    """A task that a bulk operation has left as it was, and why."""

    task_id: TaskId[Any]
    reason: str


class BulkResult(NamedTuple):
    """What a bulk operation has done.

    ``matched`` is the number of tasks that the filter has matched, but for those that had the new
    eta or priority already. ``done`` is the number of those that were changed (that would be, in a
    dry run). ``skipped`` are the first 1,000 of the others. ``cursor``
    is where to go on after an interruption; ``None``: nothing is left.
    """

    matched: int
    done: int
    skipped: tuple[SkippedTask, ...]
    cursor: str | None
