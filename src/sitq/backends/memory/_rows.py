"""A task in the reference store: one immutable row, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sitq._stored_errors import LOST_ERROR
from sitq.models import OutcomeKind, ReservedTask, Result, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from datetime import datetime

    from sitq.models import Outcome, Progress, Task

__all__ = [
    "TaskRow",
    "after",
    "delete_at",
    "reached",
    "reclaimed",
    "to_info",
    "to_reserved",
    "to_result",
]


@dataclass(frozen=True)
class TaskRow:
    """All that is stored of a task; replaced as a whole, never changed."""

    task: Task
    number: int
    eta: datetime
    enqueued_at: datetime
    status: TaskStatus = TaskStatus.PENDING
    epoch: int = 0
    attempts: int = 0
    crashes: int = 0
    unknown_function_count: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_end: datetime | None = None
    cancel_requested: bool = False
    key_released: bool = False
    progress: Progress | None = None
    value: bytes | None = None
    error: str | None = None
    traceback: str | None = None

    def is_due(self, now: datetime) -> bool:
        return self.status is TaskStatus.PENDING and self.eta <= now and not self.is_expired(now)

    def is_expired(self, now: datetime) -> bool:
        return self.task.expires_at is not None and self.task.expires_at <= now

    def holds(self, key: str) -> bool:
        """Return whether this task is the one that holds a unique key."""
        is_free = self.key_released or (self.task.unique_until == "start" and self.epoch > 0)
        return self.task.unique_key == key and not self.status.is_final and not is_free

    def can_never_start(self, now: datetime) -> bool:
        """Return whether it expires before it may start, and no worker has it under a lease."""
        if self.lease_end is None:
            return self.is_expired(max(now, self.eta))
        return self.is_expired(now) and self.lease_end <= now

    @property
    def order(self) -> tuple[int, datetime, int]:
        return (-self.task.priority, self.eta, self.number)

    def ended(
        self,
        status: TaskStatus,
        now: datetime,
        *,
        value: bytes | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> TaskRow:
        """The row once it is final."""
        return replace(
            self.unleased(),
            status=status,
            finished_at=now,
            value=value,
            error=error,
            traceback=traceback,
        )

    def unleased(self) -> TaskRow:
        return replace(self, lease_end=None, cancel_requested=False, progress=None)

    def released(self) -> TaskRow:
        """The row as if its attempt had not been."""
        return replace(self.unleased(), status=TaskStatus.PENDING, attempts=self.attempts - 1)


def reached(moment: datetime | None, now: datetime) -> datetime | None:
    return moment if moment is not None and moment <= now else None


def delete_at(row: TaskRow) -> datetime | None:
    if row.finished_at is None:
        return None
    return row.finished_at + timedelta(seconds=row.task.result_ttl)


def after(row: TaskRow, outcome: Outcome, now: datetime) -> TaskRow:
    """The row of an attempt once its outcome was accepted."""
    kind = outcome.kind
    policy = row.task.retry
    if kind is OutcomeKind.RETRY and policy and row.attempts >= policy.max_attempts:
        kind = OutcomeKind.FAILURE
    if row.cancel_requested and kind in {
        OutcomeKind.RETRY,
        OutcomeKind.RELEASE,
        OutcomeKind.UNKNOWN_FUNCTION,
    }:
        kind = OutcomeKind.CANCELLED
    later = now + timedelta(seconds=outcome.delay)
    match kind:
        case OutcomeKind.SUCCESS:
            return row.ended(TaskStatus.SUCCESS, now, value=outcome.value or b"")
        case OutcomeKind.FAILURE:
            return row.ended(
                TaskStatus.FAILED, now, error=outcome.error, traceback=outcome.traceback
            )
        case OutcomeKind.CANCELLED:
            return row.ended(TaskStatus.CANCELLED, now)
        case OutcomeKind.RETRY:
            return replace(
                row.unleased(),
                status=TaskStatus.PENDING,
                eta=later,
                error=outcome.error,
                traceback=outcome.traceback,
            )
        case OutcomeKind.RELEASE:
            return row.released()
        case OutcomeKind.UNKNOWN_FUNCTION:
            return replace(
                row.released(), unknown_function_count=row.unknown_function_count + 1, eta=later
            )


def reclaimed(row: TaskRow, max_crashes: int, now: datetime) -> TaskRow:
    """The row of an attempt whose lease ended without an outcome."""
    cancelled = row.cancel_requested
    row = replace(row.released(), crashes=row.crashes + 1)
    if cancelled:
        return row.ended(TaskStatus.CANCELLED, now)
    if row.crashes >= max_crashes:
        return row.ended(TaskStatus.FAILED, now, error=LOST_ERROR % row.crashes)
    return row


def to_info(row: TaskRow) -> TaskInfo:
    return TaskInfo(
        task_id=row.task.id,
        status=row.status,
        queue=row.task.queue,
        function=row.task.function,
        priority=row.task.priority,
        eta=row.eta,
        attempts=row.attempts,
        crashes=row.crashes,
        progress=row.progress,
        error=row.error,
        cancel_requested=row.cancel_requested,
        unique_key=row.task.unique_key,
        retry_of=row.task.retry_of,
        enqueued_at=row.enqueued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        expires_at=row.task.expires_at,
    )


def to_result(row: TaskRow) -> Result[Any] | None:
    if row.finished_at is None:
        return None
    return Result(
        task_id=row.task.id,
        function=row.task.function,
        status=row.status,
        value=row.value,
        error=row.error,
        traceback=row.traceback,
        attempts=row.attempts,
        enqueued_at=row.enqueued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def to_reserved(row: TaskRow) -> ReservedTask:
    """A row that has just been reserved, as its worker gets it."""
    return ReservedTask(
        id=row.task.id,
        function=row.task.function,
        payload=row.task.payload,
        queue=row.task.queue,
        epoch=row.epoch,
        attempt=row.attempts,
        unknown_function_count=row.unknown_function_count,
        crashes=row.crashes,
        eta=row.eta,
        enqueued_at=row.enqueued_at,
        timeout=row.task.timeout,
        retry=row.task.retry,
        headers=row.task.headers,
    )
