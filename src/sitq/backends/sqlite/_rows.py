"""Rows of the SQLite store as models, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._texts import dump_headers, dump_policy, load_headers, load_policy
from sitq.ids import TaskId
from sitq.models import Progress, ReservedTask, Result, Task, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Row",
    "cut",
    "dump_rows",
    "from_micros",
    "to_columns",
    "to_info",
    "to_micros",
    "to_reserved",
    "to_result",
    "to_row",
    "to_task",
]

Row = tuple[Any, ...]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

dump_rows: Final = json.JSONEncoder(separators=(",", ":")).encode


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The moment, aware, in UTC."""
    return _EPOCH + timedelta(0, 0, micros)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def cut(parts: Iterable[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Join parts to one blob and tell where each is: the start (from 1) and the length."""
    pieces = list(parts)
    lengths = [len(piece) for piece in pieces]
    starts = accumulate(lengths, initial=1)
    return b"".join(pieces), list(zip(starts, lengths, strict=False))


def to_columns(task: Task) -> dict[str, Any]:
    """A task as the columns of an insert, without its payload."""
    retry = task.retry
    return {
        "id": task.id,
        "queue": task.queue,
        "priority": task.priority,
        "eta": None if task.eta is None else to_micros(task.eta),
        "function": task.function,
        "max_attempts": None if retry is None else retry.max_attempts,
        "timeout": task.timeout,
        "unique_key": task.unique_key,
        "expires_at": None if task.expires_at is None else to_micros(task.expires_at),
        "result_ttl": round(task.result_ttl * 1_000_000),
        "retry_of": task.retry_of,
        "retry": None if retry is None else dump_policy(retry),
        "headers": dump_headers(task.headers),
    }


def to_row(task: Task, place: tuple[int, int]) -> Sequence[Any]:
    """A task as a row of a batch; ``place`` is where its payload lies in the blob."""
    return (*to_columns(task).values(), *place)


def to_reserved(row: Row) -> ReservedTask:
    """A row of the due tasks, as it is once it has been reserved."""
    (_, task_id, function, queue, epoch, attempts, misses, crashes, eta, enqueued_at, timeout,
     retry, headers, payload) = row  # fmt: skip
    moment = from_micros(eta)
    fields = {
        "id": task_id,
        "function": function,
        "payload": payload,
        "queue": queue,
        "epoch": epoch + 1,
        "attempt": attempts + 1,
        "misses": misses,
        "crashes": crashes,
        "eta": moment,
        "enqueued_at": moment if enqueued_at == eta else from_micros(enqueued_at),
        "timeout": timeout,
        "retry": None if retry is None else load_policy(retry),
    }
    if headers is not None:
        fields["headers"] = load_headers(headers)
    return ReservedTask.model_validate(fields)


def to_result(row: Row) -> Result[Any] | None:
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
        error=error,
        traceback=traceback,
        attempts=attempts,
        enqueued_at=from_micros(enqueued_at),
        started_at=_moment(started_at),
        finished_at=from_micros(finished_at),
    )


def to_info(row: Row) -> TaskInfo:
    """A row of all that is told of a task."""
    (task_id, status, queue, function, priority, eta, attempts, crashes, progress, error, cancelled,
     unique_key, retry_of, enqueued_at, started_at, finished_at, expires_at) = row  # fmt: skip
    return TaskInfo(
        task_id=task_id,
        status=TaskStatus(status),
        queue=queue,
        function=function,
        priority=priority,
        eta=from_micros(eta),
        attempts=attempts,
        crashes=crashes,
        progress=None if progress is None else Progress.model_validate_json(progress),
        error=error,
        cancel_requested=bool(cancelled),
        unique_key=unique_key,
        retry_of=retry_of,
        enqueued_at=from_micros(enqueued_at),
        started_at=_moment(started_at),
        finished_at=_moment(finished_at),
        expires_at=_moment(expires_at),
    )


def to_task(row: Row) -> Task:
    """A row of a task as it was enqueued."""
    (task_id, function, payload, queue, priority, eta, timeout, retry, unique_key, expires_at,
     result_ttl, headers, retry_of) = row  # fmt: skip
    return Task(
        id=task_id,
        function=function,
        payload=payload,
        queue=queue,
        priority=priority,
        eta=from_micros(eta),
        timeout=timeout,
        retry=None if retry is None else load_policy(retry),
        unique_key=unique_key,
        expires_at=_moment(expires_at),
        result_ttl=result_ttl / 1_000_000,
        headers=load_headers(headers),
        retry_of=retry_of,
    )
