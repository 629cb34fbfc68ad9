"""A task in the reference store: one immutable row, and how it changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sitq._system_errors import LOST_ATTEMPT, LOST_ERROR
from sitq.administration import KEPT_FAILURES, FailedAttempt
from sitq.models import OutcomeKind
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import BaseModel

    from sitq.ids import TaskId
    from sitq.models import Outcome, Progress, Task

__all__ = ["TaskRow"]

M = TypeVar("M", bound="BaseModel")


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
    worker: str | None = None
    cancel_requested: bool = False
    key_released: bool = False
    progress: Progress | None = None
    value: bytes | None = None
    error: str | None = None
    traceback: str | None = None
    retried_as: TaskId[Any] | None = None
    failures: tuple[FailedAttempt, ...] = ()

    def as_task(self) -> Task:
        """Return the task as it was enqueued, with its present eta."""
        return self.task.model_copy(update={"eta": self.eta})

    @property
    def is_pending(self) -> bool:
        return self.status is TaskStatus.PENDING

    @property
    def expires_at(self) -> datetime | None:
        """Return when a task that is still pending expires."""
        return self.task.expires_at if self.is_pending else None

    @property
    def delete_at(self) -> datetime | None:
        """Return when the retention of a final task is over."""
        return self.finished_at and self.finished_at + timedelta(seconds=self.task.result_ttl)

    def is_due(self, now: datetime) -> bool:
        return self.eta <= now

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

    def reserved(self, worker: str, now: datetime, lease_end: datetime) -> TaskRow:
        """Return the row of a new attempt."""
        return replace(
            self,
            status=TaskStatus.IN_PROGRESS,
            epoch=self.epoch + 1,
            attempts=self.attempts + 1,
            started_at=now,
            lease_end=lease_end,
            worker=worker,
        )

    def ended(
        self,
        status: TaskStatus,
        now: datetime,
        *,
        value: bytes | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> TaskRow:
        """Return the row once it is final."""
        return replace(
            self.unleased(),
            status=status,
            finished_at=now,
            value=value,
            error=error,
            traceback=traceback,
        )

    def unleased(self) -> TaskRow:
        return replace(self, lease_end=None, worker=None, cancel_requested=False, progress=None)

    def with_failure(self, now: datetime, error: str, traceback: str | None = None) -> TaskRow:
        """Return the row with its attempt among those that failed."""
        failure = FailedAttempt(
            number=self.attempts,
            worker=self.worker,
            started_at=self.started_at or now,
            ended_at=now,
            error=error,
            traceback=traceback,
        )
        return replace(self, failures=(*self.failures, failure)[-KEPT_FAILURES:])

    def released(self) -> TaskRow:
        """Return the row as if its attempt had not been."""
        return replace(self.unleased(), status=TaskStatus.PENDING, attempts=self.attempts - 1)

    def after(self, outcome: Outcome, now: datetime) -> TaskRow:
        """Return the row of an attempt whose outcome was accepted."""
        kind = outcome.kind
        policy = self.task.retry
        if kind is OutcomeKind.RETRY and policy and self.attempts >= policy.max_attempts:
            kind = OutcomeKind.FAILURE
        if self.cancel_requested and kind not in {OutcomeKind.SUCCESS, OutcomeKind.FAILURE}:
            kind = OutcomeKind.CANCELLED
        row = self
        later = now + timedelta(seconds=outcome.delay)
        if kind in {OutcomeKind.RETRY, OutcomeKind.FAILURE}:
            row = self.with_failure(now, outcome.error or "", outcome.traceback)
        match kind:
            case OutcomeKind.SUCCESS:
                return self.ended(TaskStatus.SUCCESS, now, value=outcome.value or b"")
            case OutcomeKind.FAILURE:
                return row.ended(
                    TaskStatus.FAILED, now, error=outcome.error, traceback=outcome.traceback
                )
            case OutcomeKind.CANCELLED:
                return self.ended(TaskStatus.CANCELLED, now)
            case OutcomeKind.RETRY:
                row = replace(row.unleased(), status=TaskStatus.PENDING, eta=later)
                return replace(row, error=outcome.error, traceback=outcome.traceback)
            case OutcomeKind.RELEASE:
                return self.released()
            case OutcomeKind.UNKNOWN_FUNCTION:
                count = self.unknown_function_count + 1
                return replace(self.released(), unknown_function_count=count, eta=later)

    def reclaimed(self, max_crashes: int, now: datetime) -> TaskRow:
        """Return the row of an attempt whose lease ended without an outcome."""
        row = self.with_failure(now, LOST_ATTEMPT).released()
        row = replace(row, crashes=self.crashes + 1)
        if self.cancel_requested:
            return row.ended(TaskStatus.CANCELLED, now)
        if row.crashes >= max_crashes:
            return row.ended(TaskStatus.FAILED, now, error=LOST_ERROR % row.crashes)
        return row

    def to(self, model: type[M]) -> M:
        """Return a model, whose fields have the names of those here or in the task."""
        values = dict(self.task) | vars(self) | {"task_id": self.task.id, "attempt": self.attempts}
        return model(**{name: values[name] for name in model.model_fields})
