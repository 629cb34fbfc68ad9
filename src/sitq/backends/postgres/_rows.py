"""Rows of the PostgreSQL store as models, and back."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._texts import dump_headers, dump_policy, load_headers, load_policy
from sitq.ids import TaskId
from sitq.models import Progress, ReservedTask, Result, Task, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.backends.postgres._driver import Row

__all__ = [
    "columns",
    "common_columns",
    "storable",
    "to_info",
    "to_reserved",
    "to_result",
    "to_task",
]

_NUL: Final = "\0"
# All that an insert needs but id and payload; the simplest tasks have none from `_OTHERS` on.
_all_but_payload: Final = attrgetter(
    "queue", "priority", "function", "result_ttl",
    "eta", "retry", "unique_key", "expires_at", "timeout", "retry_of", "headers",
)  # fmt: skip
_OTHERS: Final = slice(4, None)


def storable(text: str | None) -> str | None:
    r"""A text that PostgreSQL can take: a NUL character, which it cannot, becomes ``\x00``."""
    if text is None or _NUL not in text:
        return text
    return text.replace(_NUL, "\\x00")


def common_columns(tasks: Sequence[Task]) -> tuple[Any, ...] | None:
    """What tasks have in common that differ in id and payload only and are due at once.

    Queue, priority, function and retention; ``None`` if they differ, or have other options.
    """
    first = _all_but_payload(tasks[0])
    if any(first[_OTHERS]) or not all(map(first.__eq__, map(_all_but_payload, tasks))):
        return None
    return first[: _OTHERS.start]


def columns(tasks: Sequence[Task]) -> list[list[Any]]:
    """Tasks as the columns of an insert."""
    return [
        [task.id for task in tasks],
        [task.queue for task in tasks],
        [task.priority for task in tasks],
        [task.eta for task in tasks],
        [task.function for task in tasks],
        [None if task.retry is None else task.retry.max_attempts for task in tasks],
        [task.timeout for task in tasks],
        [task.unique_key for task in tasks],
        [task.expires_at for task in tasks],
        [task.result_ttl for task in tasks],
        [task.retry_of for task in tasks],
        [None if task.retry is None else dump_policy(task.retry) for task in tasks],
        [dump_headers(task.headers) for task in tasks],
        [task.payload for task in tasks],
    ]


def to_reserved(row: Row) -> ReservedTask:
    """A row of a reservation."""
    (_, task_id, function, queue, epoch, attempts, misses, crashes, eta, enqueued_at, timeout,
     retry, headers, payload, _) = row  # fmt: skip
    options = {} if headers is None else {"headers": load_headers(headers)}
    return ReservedTask(
        id=task_id,
        function=function,
        payload=payload,
        queue=queue,
        epoch=epoch,
        attempt=attempts,
        misses=misses,
        crashes=crashes,
        eta=eta,
        enqueued_at=enqueued_at,
        timeout=timeout,
        retry=None if retry is None else load_policy(retry),
        **options,
    )


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
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=finished_at,
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
        eta=eta,
        attempts=attempts,
        crashes=crashes,
        progress=None if progress is None else Progress.model_validate_json(progress),
        error=error,
        cancel_requested=cancelled,
        unique_key=unique_key,
        retry_of=retry_of,
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=finished_at,
        expires_at=expires_at,
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
        eta=eta,
        timeout=timeout,
        retry=None if retry is None else load_policy(retry),
        unique_key=unique_key,
        expires_at=expires_at,
        result_ttl=result_ttl,
        headers=load_headers(headers),
        retry_of=retry_of,
    )
