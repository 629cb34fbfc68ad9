"""Rows of the stores that speak SQL as models; their statements name the columns in one order."""

from __future__ import annotations

import json
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from sitq._stored_errors import LOST_ERROR, UNREADABLE
from sitq._validation import has_module
from sitq.ids import TaskId
from sitq.models import Progress, ReservedTask, Result, RetryPolicy, Task, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

__all__ = [
    "LOST_ERROR",
    "UNREADABLE",
    "RowReader",
    "dump_headers",
    "dump_policy",
    "load_headers",
    "load_policy",
    "load_progress",
    "truncate",
]

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


# Nothing that `dump_policy`, `dump_headers` and progress write is longer.
_MAX_TEXT: Final = 131_072


def _bounded(text: str) -> str:
    """Refuse a text that no queue has written, before any of it is read.

    Raises:
        ValueError: it is too long.
    """
    if len(text) > _MAX_TEXT:
        raise ValueError("a stored text is too long")
    return text


@lru_cache(maxsize=256)
def load_policy(text: str) -> RetryPolicy:
    """Return a retry policy as it was stored.

    Names of exceptions without a module, which match none, were stored by earlier versions: they
    are left out.

    Raises:
        ValueError: the text holds something else.
    """
    fields = from_json(_bounded(text))
    for key in ("retry_on", "no_retry_on") if type(fields) is dict else ():
        names = fields.get(key)
        if type(names) is list:
            fields[key] = [each for each in names if type(each) is not str or has_module(each)]
    return RetryPolicy.model_validate(fields)


@lru_cache(maxsize=256)
def dump_policy(policy: RetryPolicy) -> str:
    """A retry policy as it is stored."""
    # A version of sitq that does not know the field reads what does not need it.
    return policy.model_dump_json(exclude=None if policy.no_retry_on else {"no_retry_on"})


def load_headers(text: str | None) -> Mapping[str, str]:
    """Read headers as they were stored.

    Raises:
        ValueError: the text holds something else.
    """
    if text is None:
        return _NO_HEADERS
    try:
        headers = json.loads(_bounded(text))
    except RecursionError:
        raise ValueError("stored headers are nested too deeply") from None
    if type(headers) is not dict or not {str}.issuperset(map(type, headers.values())):
        raise ValueError("stored headers are no texts")
    return headers


def load_progress(text: str | None) -> Progress | None:
    """Read a task's progress as it was stored.

    Raises:
        ValueError: the text holds something else.
    """
    return None if text is None else Progress.model_validate_json(_bounded(text))


def truncate(text: str | None, limit: int) -> str | None:
    """Return what of a stored text is shown; a worker writes none that is longer."""
    if text is None or len(text) <= limit:
        return text
    return f"{text[:limit]}\n[... {len(text) - limit} characters left out ...]"


def dump_headers(headers: Mapping[str, str]) -> str | None:
    """Headers as they are stored; nothing for none."""
    return json.dumps(dict(headers)) if headers else None


# Somewhat more than what a worker reports: its own cuts count in other units.
_MAX_ERROR: Final = 16_000
_MAX_TRACEBACK: Final = 128_000


class RowReader:
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
            "unknown_function_count": misses,
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
            error=truncate(error, _MAX_ERROR),
            traceback=truncate(traceback, _MAX_TRACEBACK),
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
            error=truncate(error, _MAX_ERROR),
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
