"""What a running task may know of itself: `current_task`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import pydantic

from sitq.errors import UsageError, ValidationError
from sitq.models import Progress, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import Lease, ReservedTask

__all__ = ["CURRENT", "TaskContext", "current_task"]


class TaskContext:
    """The attempt that the calling code runs in."""

    __slots__ = ("_cancel_requested", "_note", "_task", "deadline")

    def __init__(
        self,
        task: ReservedTask,
        deadline: datetime | None,
        note: Callable[[Lease, Progress], object],
    ) -> None:
        self._task: Final = task
        self._note: Final = note
        self._cancel_requested = False
        self.deadline = deadline
        """The moment that the attempt's timeout ends it (UTC); ``None``: there is no timeout."""

    def __repr__(self) -> str:
        return f"TaskContext(id={self.id!r}, function={self.function!r}, attempt={self.attempt})"

    @property
    def id(self) -> TaskId[Any]:
        """The task's id: the idempotency key of what the task does."""
        return self._task.id

    @property
    def function(self) -> str:
        """The function's stored name."""
        return self._task.function

    @property
    def queue(self) -> str:
        """The queue that the task came from."""
        return self._task.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is; 1 for the first."""
        return self._task.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """What travels with the task."""
        return self._task.headers

    @property
    def lease(self) -> Lease:
        """The lease that the attempt runs under: the task's id, and the fencing token."""
        return self._task.lease

    @property
    def cancel_requested(self) -> bool:
        """True once the attempt is to end: cancelled, out of time, shut down, or its lease lost.

        A plain function asks for it. If the task was cancelled, raising makes it ``cancelled``,
        and a value that is returned counts.
        """
        return self._cancel_requested

    def request_cancel(self) -> None:
        """Let the task know that it is to end."""
        self._cancel_requested = True

    def progress(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how far the task is; never waits, from any thread. The last word counts.

        Args:
            done: units done, 0 to 2**63 - 1.
            total: units in all, where known.
            note: a short text, at most 1,000 characters.

        Raises:
            ValidationError: a value is out of its range or of the wrong type.
        """
        try:
            progress = Progress(done=done, total=total, note=note)
        except pydantic.ValidationError as error:
            raise ValidationError(f"progress: {describe(error)}") from None
        self._note(self.lease, progress)


CURRENT: Final[ContextVar[TaskContext]] = ContextVar("sitq_current_task")


def current_task() -> TaskContext:
    """Return the attempt that the calling code runs in, in async and plain functions alike.

    Raises:
        UsageError: the caller is not run by a worker.
    """
    try:
        return CURRENT.get()
    except LookupError:
        message = "current_task() works only inside a function that a sitq worker runs"
        raise UsageError(message) from None
