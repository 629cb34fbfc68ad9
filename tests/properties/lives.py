"""What a watcher of a store knows of one task: what was done to it, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sitq.administration import FailedAttempt
from sitq.ids import TaskId
from sitq.models import Progress, ReservedTask, Result, Task, TaskInfo
from sitq.states import TaskStatus

__all__ = ["BrokenRuleError", "Life", "demand", "present"]

T = TypeVar("T")
# So many failed attempts of a task are kept.
KEPT = 10


class BrokenRuleError(AssertionError):
    """A store has broken a rule; the text begins with its number in the design."""


def demand(fact: bool, rule: str, *what: object) -> None:
    """Hold a store to a rule; ``what`` is put into words only where it is broken."""
    if not fact:
        raise BrokenRuleError(f"{rule}: {' '.join(map(str, what))}")


def present(value: T | None) -> T:
    """The value, where the history is sure that there is one."""
    assert value is not None
    return value


@dataclass
class Life:
    """One task's life so far; the counters are those of the events, not those of the store."""

    task: Task
    number: int
    enqueued_at: datetime
    eta: datetime
    starts: int = 0
    given_back: int = 0
    crashes: int = 0
    unknown_function_count: int = 0
    started_at: datetime | None = None
    lease_end: datetime | None = None
    worker: str | None = None
    cancel_asked: bool = False
    key_released: bool = False
    progress: Progress | None = None
    error: str | None = None
    traceback: str | None = None
    end: Result[Any] | None = None
    retried_as: TaskId[Any] | None = None
    failures: tuple[FailedAttempt, ...] = ()

    @property
    def status(self) -> TaskStatus:
        if self.end is not None:
            return self.end.status
        return TaskStatus.PENDING if self.lease_end is None else TaskStatus.IN_PROGRESS

    @property
    def finished_at(self) -> datetime | None:
        return None if self.end is None else self.end.finished_at

    @property
    def attempts(self) -> int:
        return self.starts - self.given_back

    @property
    def most_attempts(self) -> float:
        policy = self.task.retry
        return float("inf") if policy is None else policy.max_attempts

    @property
    def order(self) -> tuple[int, datetime, int]:
        return (-self.task.priority, self.eta, self.number)

    def expired(self, now: datetime) -> bool:
        return self.task.expires_at is not None and self.task.expires_at <= now

    def holds(self, key: str) -> bool:
        started = self.task.unique_until == "start" and self.starts > 0
        free = started or self.key_released or self.cancel_asked or self.end is not None
        return self.task.unique_key == key and not free

    def start(self, worker: str, now: datetime, lease_end: datetime) -> None:
        self.starts += 1
        self.started_at = now
        self.lease_end = lease_end
        self.worker = worker

    def fail(self, now: datetime, error: str | None, traceback: str | None = None) -> None:
        """Note the attempt as one that failed."""
        failure = FailedAttempt(
            number=self.attempts,
            worker=self.worker,
            started_at=present(self.started_at),
            ended_at=now,
            error=present(error),
            traceback=traceback,
        )
        self.failures = (*self.failures, failure)[-KEPT:]

    def end_lease(self, *, spent: bool) -> None:
        self.lease_end = self.worker = None
        self.progress = None
        self.given_back += not spent

    def end_as(
        self,
        status: TaskStatus,
        now: datetime,
        value: bytes | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        self.lease_end = self.worker = None
        self.progress = None
        self.cancel_asked = False
        self.error, self.traceback = error, traceback
        self.end = Result(
            task_id=self.task.id,
            function=self.task.function,
            status=status,
            value=value,
            error=error,
            traceback=traceback,
            attempts=self.attempts,
            enqueued_at=self.enqueued_at,
            started_at=self.started_at,
            finished_at=now,
        )

    def as_reserved(self) -> ReservedTask:
        """The task as the worker must have got it that started it last."""
        return ReservedTask(
            id=self.task.id,
            function=self.task.function,
            payload=self.task.payload,
            queue=self.task.queue,
            epoch=self.starts,
            attempt=self.attempts,
            unknown_function_count=self.unknown_function_count,
            crashes=self.crashes,
            eta=self.eta,
            enqueued_at=self.enqueued_at,
            timeout=self.task.timeout,
            retry=self.task.retry,
            headers=self.task.headers,
        )

    def as_info(self) -> TaskInfo:
        return TaskInfo(
            task_id=self.task.id,
            status=self.status,
            queue=self.task.queue,
            function=self.task.function,
            priority=self.task.priority,
            eta=self.eta,
            attempts=self.attempts,
            crashes=self.crashes,
            progress=self.progress,
            error=self.error,
            cancel_requested=self.cancel_asked,
            unique_key=self.task.unique_key,
            retry_of=self.task.retry_of,
            retried_as=self.retried_as,
            worker=self.worker,
            enqueued_at=self.enqueued_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            expires_at=self.task.expires_at,
        )
