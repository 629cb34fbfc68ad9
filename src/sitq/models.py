"""The frozen, strict models that queue, store and worker exchange.

Times are aware datetimes in UTC, and durations are seconds as ``float``. A ``repr`` shows neither
payloads nor tracebacks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Self

import pydantic
from pydantic import AwareDatetime, Field, PrivateAttr

from sitq._builtin_types import plain
from sitq._validation import (
    MAX_PRIORITY,
    MIN_PRIORITY,
    NO_HEADERS,
    Count,
    ExceptionNames,
    FunctionName,
    Headers,
    Key,
    Model,
    Moment,
    PositiveSeconds,
    Priority,
    QueueName,
    Seconds,
    describe,
)
from sitq.errors import ValidationError
from sitq.ids import R_co, TaskId
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALL_QUEUES",
    "DEFAULT_QUEUE",
    "DEFAULT_RESULT_TTL",
    "MAX_PRIORITY",
    "MIN_PRIORITY",
    "Lease",
    "LeaseState",
    "Outcome",
    "OutcomeKind",
    "Progress",
    "Reservation",
    "ReservedTask",
    "Result",
    "RetryPolicy",
    "Task",
    "TaskInfo",
]


class Lease(NamedTuple):
    """The right to run a task: its id and the epoch of the reservation."""

    task_id: TaskId[Any]
    epoch: int


class LeaseState(StrEnum):
    """The state of a lease, as the store answers a heartbeat."""

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
    UNKNOWN_FUNCTION = "miss"
    CANCELLED = "cancelled"


class Outcome(Model):
    """How the attempt under one lease ended; use the constructors named after the kinds.

    Args:
        task_id: the task's id.
        epoch: the epoch of the lease.
        kind: how the attempt ended.
        value: the encoded result of a success, bytes.
        error: ``"ValueError: text"`` of an attempt that failed.
        traceback: the task's own frames, as text.
        delay: seconds from the moment that the store accepts the outcome until the task may start.
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
        """Make the outcome of a function that returned.

        Args:
            lease: the lease that the attempt ran under.
            value: its encoded result.
        """
        return cls._of(lease, OutcomeKind.SUCCESS, value=value)

    @classmethod
    def failure(cls, lease: Lease, error: str, traceback: str | None = None) -> Self:
        """Make the outcome of a task that failed for good.

        Args:
            lease: the lease that the attempt ran under.
            error: the error, as ``"ValueError: text"``.
            traceback: the task's own frames, as text.
        """
        return cls._of(lease, OutcomeKind.FAILURE, error=error, traceback=traceback)

    @classmethod
    def retry(cls, lease: Lease, delay: float, error: str, traceback: str | None = None) -> Self:
        """Make the outcome of an attempt that failed and is followed by another.

        Args:
            lease: the lease that the attempt ran under.
            delay: seconds until the next attempt may start.
            error: the error, as ``"ValueError: text"``.
            traceback: the task's own frames, as text.
        """
        return cls._of(lease, OutcomeKind.RETRY, delay=delay, error=error, traceback=traceback)

    @classmethod
    def release(cls, lease: Lease) -> Self:
        """Make the outcome of a task that is handed back, due at once; no attempt is spent.

        Args:
            lease: the lease that the attempt ran under.
        """
        return cls._of(lease, OutcomeKind.RELEASE)

    @classmethod
    def unknown_function(cls, lease: Lease, delay: float) -> Self:
        """Make the outcome of a task that this worker cannot start; no attempt is spent.

        The worker does not know the function, or its version takes other arguments.

        Args:
            lease: the lease that the attempt ran under.
            delay: seconds until a worker may try the task again.
        """
        return cls._of(lease, OutcomeKind.UNKNOWN_FUNCTION, delay=delay)

    @classmethod
    def cancelled(cls, lease: Lease) -> Self:
        """Make the outcome of a task that ended because it was cancelled.

        Args:
            lease: the lease that the attempt ran under.
        """
        return cls._of(lease, OutcomeKind.CANCELLED)

    @classmethod
    def _of(cls, lease: Lease, kind: OutcomeKind, **fields: object) -> Self:
        # Made once for each task: the shortest way through the validator.
        outcome: Self = cls.__pydantic_validator__.validate_python(
            {"task_id": lease.task_id, "epoch": lease.epoch, "kind": kind, **fields}
        )
        return outcome

    @property
    def lease(self) -> Lease:
        """Return the lease that the attempt ran under."""
        return Lease(self.task_id, self.epoch)


class Progress(Model):
    """The progress that a running task has reported.

    Args:
        done: units done, 0 to 2**63 - 1.
        total: units in all, where known.
        note: a short text, at most 1,000 characters.
    """

    done: Count
    total: Count | None = None
    note: str = Field(default="", max_length=1000)


DEFAULT_QUEUE: Final = "default"
# Stands for all queues where names of queues are given; no queue has this name.
ALL_QUEUES: Final = ("*",)
DEFAULT_RESULT_TTL: Final = 7 * 24 * 3600.0


class RetryPolicy(Model):
    """When a failed task is tried again, and after how long.

    The n-th retry waits ``delay * factor ** (n - 1)`` seconds, at most ``max_delay``, of which
    the share ``jitter`` is drawn at random: with 0.5 a wait of 10 s lies between 5 s and 10 s.

    Args:
        max_attempts: starts in all, the first one included (1 to 1,000).
        delay: seconds before the first retry.
        factor: by which each wait is longer than the one before (1 to 100).
        max_delay: the longest wait, in seconds.
        jitter: the random share of each wait, a fraction from 0 to 1.
        retry_on: exception classes that are worth a retry, subclasses included. They are
            stored by name (``"module.Class"``), which is accepted too, also that of a module
            which imports the class. A class of a script is known however it was started.
        no_retry_on: exception classes that are not, though ``retry_on`` covers them; subclasses
            included. They are stored by name as well.

    Raises:
        ValidationError: a value is out of its range or of the wrong type.
    """

    max_attempts: int = Field(default=3, ge=1, le=1000)
    delay: Seconds = 1.0
    factor: float = Field(default=2.0, ge=1, le=100)
    max_delay: Seconds = 3600.0
    jitter: float = Field(default=0.1, ge=0, le=1)
    retry_on: ExceptionNames = ("builtins.Exception",)
    no_retry_on: ExceptionNames = ()

    if not TYPE_CHECKING:

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**{name: plain(value) for name, value in data.items()})
            except pydantic.ValidationError as error:
                raise ValidationError(f"RetryPolicy: {describe(error)}") from None

    def as_plain(self) -> RetryPolicy:
        """Return a policy of this very class: the additions of a subclass are not stored."""
        if type(self) is RetryPolicy:
            return self
        return RetryPolicy(**{name: getattr(self, name) for name in RetryPolicy.model_fields})


class Task(Model):
    """A function's name, its arguments and its options, as handed to the store.

    Args:
        id: the task's id, made by the process that enqueues it.
        function: the function's stored name.
        payload: the encoded arguments, bytes.
        queue: the queue that it waits in.
        priority: -100 to 100; higher runs first.
        eta: the earliest moment that it may start; ``None``: at once.
        timeout: seconds that one attempt may take; ``None``: no limit.
        retry: the retry policy; ``None``: that of the worker.
        unique_key: at most one task that is not final holds this key.
        unique_until: ``"end"``: it holds the key until it is final; ``"start"``: until it is
            reserved for the first time.
        expires_at: from this moment on it is not started any more.
        result_ttl: seconds that the result is kept after the end.
        headers: short texts that travel with the task.
        retry_of: the id of the task that this one repeats.
    """

    id: TaskId[Any]
    function: FunctionName
    payload: bytes = Field(repr=False)
    queue: QueueName = DEFAULT_QUEUE
    priority: Priority = 0
    eta: Moment | None = None
    timeout: PositiveSeconds | None = None
    retry: RetryPolicy | None = None
    unique_key: Key | None = None
    unique_until: Literal["end", "start"] = "end"
    expires_at: Moment | None = None
    result_ttl: Seconds = DEFAULT_RESULT_TTL
    headers: Headers = Field(default_factory=lambda: NO_HEADERS, repr=False)
    retry_of: TaskId[Any] | None = None

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return a copy with more headers; they are checked when the task is stored.

        Args:
            headers: the headers to add; one that the task has is replaced.
        """
        return self.model_copy(update={"headers": {**self.headers, **headers}})


class ReservedTask(Model):
    """A task as a worker gets it: what to run, and the lease to run it under.

    Args:
        id: the task's id.
        function: the function's stored name.
        payload: the encoded arguments, bytes.
        queue: the queue that it came from.
        epoch: this reservation's number, the fencing token; 1 for the first.
        attempt: which attempt this is; 1 for the first.
        unknown_function_count: how often a worker put it back because it did not know the
            function, or its version takes other arguments.
        crashes: how often its lease ended without an outcome.
        eta: the moment that it became due.
        enqueued_at: when it was stored.
        timeout: seconds that this attempt may take.
        retry: the retry policy; ``None``: that of the worker.
        headers: what travels with the task.
    """

    id: TaskId[Any]
    function: str
    payload: bytes = Field(repr=False)
    queue: str
    epoch: int
    attempt: int
    unknown_function_count: int
    crashes: int
    # No validator in Python here: this model is made for each task that runs.
    eta: AwareDatetime
    enqueued_at: AwareDatetime
    timeout: PositiveSeconds | None
    retry: RetryPolicy | None
    headers: Headers = Field(default_factory=lambda: NO_HEADERS, repr=False)

    @property
    def lease(self) -> Lease:
        """Return the lease: id and epoch."""
        return Lease(self.id, self.epoch)


class Reservation(NamedTuple):
    """The answer to one request for tasks.

    ``tasks`` are reserved. ``wait`` is the seconds until the next pending task of the queues
    asked for may start: 0 if more are due than were asked for, ``None`` if there is none.
    """

    tasks: tuple[ReservedTask, ...]
    wait: float | None


class Result(Model, Generic[R_co]):
    """The stored end of a task; exists only once the task is final.

    Args:
        task_id: the task's id.
        function: the function's stored name.
        status: ``success``, ``failed``, ``cancelled`` or ``expired``.
        value: the encoded return value, bytes; ``None`` unless ``success``.
        error: ``"ValueError: text"`` of a task that failed.
        traceback: the task's own frames, as text.
        attempts: how many attempts were spent.
        enqueued_at: when it was stored (UTC).
        started_at: when its last attempt was reserved (UTC); ``None`` if it never was.
        finished_at: when its end was stored (UTC).
    """

    task_id: TaskId[R_co]
    function: str
    status: TaskStatus
    value: bytes | None = Field(default=None, repr=False)
    error: str | None = Field(default=None, repr=False)
    traceback: str | None = Field(default=None, repr=False)
    attempts: int
    enqueued_at: Moment
    started_at: Moment | None
    finished_at: Moment
    _unsealed: bool = PrivateAttr(default=False)

    @property
    def is_unsealed(self) -> bool:
        """Return whether a serializer has verified and removed the signature."""
        return self._unsealed

    def as_unsealed(self) -> Self:
        """Return a copy for which `is_unsealed` is true."""
        copy = self.model_copy()
        copy._unsealed = True  # noqa: SLF001 - its own class
        return copy


class TaskInfo(Model):
    """The store's record of a task, in any state.

    Args:
        task_id: the task's id.
        status: its status.
        queue: its queue.
        function: the function's stored name.
        priority: -100 to 100; higher runs first.
        eta: the earliest moment that it may (or might) start (UTC).
        attempts: attempts spent so far, a running one included.
        crashes: how often its lease ended without an outcome.
        progress: the last progress that the task reported.
        error: the error of the last attempt that failed.
        cancel_requested: True if a running task has been asked to end.
        unique_key: its unique key.
        retry_of: the id of the task that this one repeats.
        retried_as: the id of the task that repeats this one, the latest.
        worker: the id of the worker that runs it.
        enqueued_at: when it was stored (UTC).
        started_at: when its last attempt was reserved (UTC).
        finished_at: when its end was stored (UTC).
        expires_at: from when on it is not started any more (UTC).
    """

    task_id: TaskId[Any]
    status: TaskStatus
    queue: str
    function: str
    priority: int
    eta: Moment
    attempts: int
    crashes: int
    progress: Progress | None = None
    error: str | None = Field(default=None, repr=False)
    cancel_requested: bool = False
    unique_key: str | None = Field(default=None, repr=False)
    retry_of: TaskId[Any] | None = None
    retried_as: TaskId[Any] | None = None
    worker: str | None = None
    enqueued_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None
    expires_at: Moment | None = None
