"""Rows of the stores that speak SQL as models; their statements name the columns in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.backends._texts import clip, load_headers, load_policy, load_progress
from sitq.ids import TaskId
from sitq.models import ReservedTask, Result, Task, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

__all__ = ["Reader"]

# Somewhat more than what a worker reports: its own cuts count in other units.
_MAX_ERROR: Final = 16_000
_MAX_TRACEBACK: Final = 128_000


class Reader:
    """Makes models of rows.

    Args:
        moment: reads a moment as the store keeps it; ``None``: the driver has done so.
    """

    def __init__(self, moment: Callable[[Any], datetime] | None = None) -> None:
        self._moment: Final = moment

    def _at(self, stored: Any) -> Any:
        return stored if stored is None or self._moment is None else self._moment(stored)

    def to_reserved(self, row: Any) -> ReservedTask:
        """A row of a reservation; there is one for each task that runs."""
        (_, task_id, function, queue, epoch, attempts, misses, crashes, eta, enqueued_at, timeout,
         retry, headers, payload, *_) = row  # fmt: skip
        moment = self._moment
        if moment is not None:
            due = moment(eta)
            enqueued_at = due if enqueued_at == eta else moment(enqueued_at)
            eta = due
        fields = {
            "id": task_id,
            "function": function,
            "payload": payload,
            "queue": queue,
            "epoch": epoch,
            "attempt": attempts,
            "misses": misses,
            "crashes": crashes,
            "eta": eta,
            "enqueued_at": enqueued_at,
            "timeout": timeout,
            "retry": None if retry is None else load_policy(retry),
        }
        if headers is not None:
            fields["headers"] = load_headers(headers)
        # There is one of these for each task that runs: checked by the shortest way.
        task: ReservedTask = ReservedTask.__pydantic_validator__.validate_python(fields)
        return task

    def to_result(self, row: Any) -> Result[Any] | None:
        """A row of the results; ``None`` if the task is not final."""
        (task_id, finished_at, function, status, value, error, traceback, attempts, enqueued_at,
         started_at) = row  # fmt: skip
        if finished_at is None:
            return None
        return Result(
            task_id=TaskId(task_id),
            function=function,
            status=TaskStatus(status),
            value=value,
            error=clip(error, _MAX_ERROR),
            traceback=clip(traceback, _MAX_TRACEBACK),
            attempts=attempts,
            enqueued_at=self._at(enqueued_at),
            started_at=self._at(started_at),
            finished_at=self._at(finished_at),
        )

    def to_info(self, row: Any) -> TaskInfo:
        """A row of all that is told of a task."""
        (task_id, status, queue, function, priority, eta, attempts, crashes, progress, error,
         cancelled, unique_key, retry_of, enqueued_at, started_at, finished_at,
         expires_at) = row  # fmt: skip
        return TaskInfo(
            task_id=task_id,
            status=TaskStatus(status),
            queue=queue,
            function=function,
            priority=priority,
            eta=self._at(eta),
            attempts=attempts,
            crashes=crashes,
            progress=load_progress(progress),
            error=clip(error, _MAX_ERROR),
            cancel_requested=bool(cancelled),
            unique_key=unique_key,
            retry_of=retry_of,
            enqueued_at=self._at(enqueued_at),
            started_at=self._at(started_at),
            finished_at=self._at(finished_at),
            expires_at=self._at(expires_at),
        )

    def to_task(self, row: Any) -> Task:
        """A row of a task as it was enqueued."""
        (task_id, function, payload, queue, priority, eta, timeout, retry, unique_key, unique_until,
         expires_at, result_ttl, headers, retry_of) = row  # fmt: skip
        return Task(
            id=task_id,
            function=function,
            payload=payload,
            queue=queue,
            priority=priority,
            eta=self._at(eta),
            timeout=timeout,
            retry=None if retry is None else load_policy(retry),
            unique_key=unique_key,
            unique_until="end" if unique_until is None else unique_until,
            expires_at=self._at(expires_at),
            result_ttl=result_ttl,
            headers=load_headers(headers),
            retry_of=retry_of,
        )
