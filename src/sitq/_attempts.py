"""What a worker and the store tell each other of an attempt."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple, Self

from pydantic import Field

from sitq._fields import Count, Model, Seconds
from sitq.ids import TaskId

__all__ = ["Lease", "LeaseState", "Outcome", "OutcomeKind", "Progress"]


class Lease(NamedTuple):
    """The right to run a task: its id and the epoch of the reservation."""

    task_id: TaskId[Any]
    epoch: int


class LeaseState(StrEnum):
    """What a heartbeat is told of a lease."""

    HELD = "held"
    CANCEL_REQUESTED = "cancel_requested"
    LOST = "lost"
    UNKNOWN = "unknown"


class OutcomeKind(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"
    RELEASE = "release"
    MISS = "miss"
    CANCELLED = "cancelled"


class Outcome(Model):
    """How the attempt under one lease ended; use the constructors named after the kinds.

    ``delay`` (seconds) counts from the moment that the store accepts the outcome.
    """

    task_id: TaskId[Any]
    epoch: int
    kind: OutcomeKind
    value: bytes | None = Field(default=None, repr=False)
    error: str | None = Field(default=None, repr=False)
    traceback: str | None = Field(default=None, repr=False)
    delay: Seconds = 0.0

    @classmethod
    def success(cls, lease: Lease, value: bytes) -> Self:
        """The function returned; ``value`` is its encoded result."""
        # There is one of these for each task that runs: checked by the shortest way.
        outcome: Self = cls.__pydantic_validator__.validate_python(
            {
                "task_id": lease.task_id,
                "epoch": lease.epoch,
                "kind": OutcomeKind.SUCCESS,
                "value": value,
            }
        )
        return outcome

    @classmethod
    def failure(cls, lease: Lease, error: str, traceback: str | None = None) -> Self:
        """The task has failed for good."""
        return cls(
            task_id=lease.task_id,
            epoch=lease.epoch,
            kind=OutcomeKind.FAILURE,
            error=error,
            traceback=traceback,
        )

    @classmethod
    def retry(cls, lease: Lease, delay: float, error: str, traceback: str | None = None) -> Self:
        """This attempt failed; the next may start in ``delay`` seconds."""
        return cls(
            task_id=lease.task_id,
            epoch=lease.epoch,
            kind=OutcomeKind.RETRY,
            error=error,
            traceback=traceback,
            delay=delay,
        )

    @classmethod
    def release(cls, lease: Lease) -> Self:
        """Handed back unfinished, at once due again; the attempt is not spent."""
        return cls(task_id=lease.task_id, epoch=lease.epoch, kind=OutcomeKind.RELEASE)

    @classmethod
    def miss(cls, lease: Lease, delay: float) -> Self:
        """Put back because this worker cannot start it; the attempt is not spent.

        It does not know the function, or its version of the function takes other arguments.
        """
        return cls(task_id=lease.task_id, epoch=lease.epoch, kind=OutcomeKind.MISS, delay=delay)

    @classmethod
    def cancelled(cls, lease: Lease) -> Self:
        """Ended because its cancellation was asked for."""
        return cls(task_id=lease.task_id, epoch=lease.epoch, kind=OutcomeKind.CANCELLED)

    @property
    def lease(self) -> Lease:
        """The lease that the attempt ran under."""
        return Lease(self.task_id, self.epoch)


class Progress(Model):
    """How far a running task says that it is.

    Args:
        done: units done, 0 to 2**63 - 1.
        total: units in all, where known.
        note: a short text, at most 1,000 characters.
    """

    done: Count
    total: Count | None = None
    note: str = Field(default="", max_length=1000)
