"""One task in the file: its stored form and its transitions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from sitq import Progress, ReservedTask, Result, Task, TaskInfo, TaskStatus
from sitq.models import Outcome, OutcomeKind

__all__ = ["Row"]

SAME_NAMES = ("status", "eta", "attempts", "crashes", "progress", "error", "cancel_requested")
TIMES = ("enqueued_at", "started_at", "finished_at")
RETURNS = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}


class Row(BaseModel):
    """A task as a line of JSON. A row is replaced as a whole."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    task: Task  # its payload is kept apart: only this model's own bytes are written as base64
    payload: bytes
    number: int
    eta: AwareDatetime
    enqueued_at: AwareDatetime
    status: TaskStatus = TaskStatus.PENDING
    epoch: int = 0
    attempts: int = 0
    crashes: int = 0
    unknown_function_count: int = 0
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    lease_end: AwareDatetime | None = None
    cancel_requested: bool = False
    key_released: bool = False
    progress: Progress | None = None
    value: bytes | None = None
    error: str | None = None
    traceback: str | None = None

    @classmethod
    def new(cls, task: Task, number: int, now: datetime) -> Row:
        """Return the row of a task that has just been enqueued."""
        bare = task.model_copy(update={"payload": b""})
        return cls(
            task=bare,
            payload=task.payload,
            number=number,
            eta=task.eta or now,
            enqueued_at=now,
        )

    def but(self, **changes: Any) -> Row:
        """Return the row with other values."""
        return self.model_copy(update=changes)

    @property
    def order(self) -> tuple[int, datetime, int]:
        """The sort key: higher priority first, then earlier eta, then insertion."""
        return (-self.task.priority, self.eta, self.number)

    def has_expired(self, now: datetime) -> bool:
        """Return whether the task may no longer start."""
        expires_at = self.task.expires_at
        return self.status is TaskStatus.PENDING and expires_at is not None and expires_at <= now

    def holds(self, key: str) -> bool:
        """Return whether this task is the one that holds a unique key."""
        is_free = self.key_released or (self.task.unique_until == "start" and self.epoch > 0)
        return self.task.unique_key == key and not self.status.is_final and not is_free

    def can_never_start(self, now: datetime) -> bool:
        """Return whether the task expires before it may start, and no worker has a lease for it."""
        if self.lease_end is not None and self.lease_end > now:
            return False
        expires_at = self.task.expires_at
        start = max(self.eta, now) if self.lease_end is None else now
        return expires_at is not None and expires_at <= start

    def without_key(self, now: datetime) -> Row:
        """Return the row after another task has taken its key."""
        if self.has_expired(now):
            return self.ended(TaskStatus.EXPIRED, now)
        return self.but(key_released=True)

    def forget_at(self) -> datetime | None:
        """The moment when the task may be removed; `None` while it is not final."""
        if self.finished_at is None:
            return None
        return self.finished_at + timedelta(seconds=self.task.result_ttl)

    def reserved(self, now: datetime, lease: float) -> Row:
        """Return the row with the next epoch, the next attempt and a lease."""
        return self.but(
            status=TaskStatus.IN_PROGRESS,
            epoch=self.epoch + 1,
            attempts=self.attempts + 1,
            started_at=now,
            lease_end=now + timedelta(seconds=lease),
        )

    def without_lease(self) -> Row:
        """Return the row after its attempt has ended."""
        return self.but(lease_end=None, cancel_requested=False, progress=None)

    def given_back(self) -> Row:
        """Return the row as pending, with its attempt given back."""
        return self.without_lease().but(status=TaskStatus.PENDING, attempts=self.attempts - 1)

    def ended(self, status: TaskStatus, now: datetime, **outcome: Any) -> Row:
        """Return the final row; an outcome that is not given is cleared."""
        outcome = {"value": None, "error": None, "traceback": None} | outcome
        return self.without_lease().but(status=status, finished_at=now, **outcome)

    def after(self, outcome: Outcome, now: datetime) -> Row:
        """Return the row after an outcome was accepted."""
        kind, policy = outcome.kind, self.task.retry
        if kind is OutcomeKind.RETRY and policy and self.attempts >= policy.max_attempts:
            kind = OutcomeKind.FAILURE
        elif kind in RETURNS and self.cancel_requested:
            kind = OutcomeKind.CANCELLED
        later = now + timedelta(seconds=outcome.delay)
        failure = {"error": outcome.error, "traceback": outcome.traceback}
        match kind:
            case OutcomeKind.SUCCESS:
                return self.ended(TaskStatus.SUCCESS, now, value=outcome.value or b"")
            case OutcomeKind.FAILURE:
                return self.ended(TaskStatus.FAILED, now, **failure)
            case OutcomeKind.CANCELLED:
                return self.ended(TaskStatus.CANCELLED, now)
            case OutcomeKind.RETRY:
                return self.without_lease().but(status=TaskStatus.PENDING, eta=later, **failure)
            case OutcomeKind.RELEASE:
                return self.given_back()
            case OutcomeKind.UNKNOWN_FUNCTION:
                return self.given_back().but(
                    unknown_function_count=self.unknown_function_count + 1, eta=later
                )

    def reclaimed(self, max_crashes: int, now: datetime) -> Row:
        """Return the row after its lease has ended without an outcome."""
        row = self.given_back().but(crashes=self.crashes + 1)
        if self.cancel_requested:
            return row.ended(TaskStatus.CANCELLED, now)
        if row.crashes >= max_crashes:
            error = f"LeaseLostError: {row.crashes} workers that ran this task were lost"
            return row.ended(TaskStatus.FAILED, now, error=error)
        return row

    def as_task(self) -> Task:
        """Return the task as it was enqueued, with its present eta."""
        return self.task.model_copy(update={"payload": self.payload, "eta": self.eta})

    def as_reserved(self) -> ReservedTask:
        """Return the task as a worker gets it."""
        task = self.task
        return ReservedTask(
            id=task.id,
            function=task.function,
            payload=self.payload,
            queue=task.queue,
            epoch=self.epoch,
            attempt=self.attempts,
            unknown_function_count=self.unknown_function_count,
            crashes=self.crashes,
            eta=self.eta,
            enqueued_at=self.enqueued_at,
            timeout=task.timeout,
            retry=task.retry,
            headers=task.headers,
        )

    def as_info(self) -> TaskInfo:
        """Return the state of the task, final or not."""
        task = self.task
        return TaskInfo(
            task_id=task.id,
            queue=task.queue,
            function=task.function,
            priority=task.priority,
            unique_key=task.unique_key,
            retry_of=task.retry_of,
            expires_at=task.expires_at,
            **{name: getattr(self, name) for name in (*SAME_NAMES, *TIMES)},
        )

    def as_result(self) -> Result[Any] | None:
        """Return the result of the task; `None` if it is not final."""
        if self.finished_at is None:
            return None
        names = ("status", "value", "error", "traceback", "attempts", *TIMES)
        return Result(
            task_id=self.task.id,
            function=self.task.function,
            **{name: getattr(self, name) for name in names},
        )
