"""Rows of the stores that speak SQL as models, and back: the columns are named here, once.

Insert lists, select lists and placeholders of the statements are made of these names.
"""

from __future__ import annotations

import json
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic_core import from_json

from sitq._logging import Log
from sitq._system_errors import LOST_ERROR, UNREADABLE
from sitq._validation import has_module
from sitq.administration import FailedAttempt, QueuePause
from sitq.models import Progress, ReservedTask, Result, RetryPolicy, Task, TaskInfo
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

__all__ = [
    "ATTEMPT_FIELDS",
    "INFO_FIELDS",
    "INSERT_TYPES",
    "LOST_ERROR",
    "MOMENTS",
    "RESULT_FIELDS",
    "TASK_FIELDS",
    "UNREADABLE",
    "RowReader",
    "dump_headers",
    "dump_policy",
    "insert_values",
    "load_headers",
    "load_policy",
    "load_progress",
    "read_rows",
    "select_list",
    "truncate",
]

_log: Final = Log(__name__)

T = TypeVar("T")

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
    """Return a retry policy as it is stored."""
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
    """Return headers as they are stored, ``None`` if there are none."""
    return json.dumps(dict(headers)) if headers else None


# -- columns ---------------------------------------------------------------------------------

# What the rows of `RowReader` consist of, in order: the fields of the models, which have the names
# of the columns unless a store's statement says otherwise.
TASK_FIELDS: Final = tuple(Task.model_fields)
INFO_FIELDS: Final = tuple(TaskInfo.model_fields)
RESULT_FIELDS: Final = tuple(Result.model_fields)
MOMENTS: Final = frozenset({"eta", "enqueued_at", "started_at", "finished_at", "expires_at"})
_TASK_MOMENTS: Final = tuple(name for name in TASK_FIELDS if name in MOMENTS)
_INFO_MOMENTS: Final = tuple(name for name in INFO_FIELDS if name in MOMENTS)
ATTEMPT_FIELDS: Final = tuple(FailedAttempt.model_fields)
_ATTEMPT_MOMENTS: Final = ("started_at", "ended_at")
_PAUSE_MOMENTS: Final = ("at", "until")
_RESULT_MOMENTS: Final = tuple(name for name in RESULT_FIELDS if name in MOMENTS)

INSERT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "id": "text",
        "queue": "text",
        "priority": "int2",
        "eta": "timestamptz",
        "function": "text",
        "max_attempts": "int4",
        "timeout": "float8",
        "unique_key": "text",
        "unique_until": "text",
        "expires_at": "timestamptz",
        "result_ttl": "float8",
        "retry_of": "text",
        "retry": "text",
        "headers": "text",
        "payload": "bytea",
    }
)
"""The columns that an insert gives values for, in order, and what PostgreSQL calls their types."""


def insert_values(
    task: Task, moment: Callable[[datetime], Any], seconds: Callable[[float], Any]
) -> dict[str, Any]:
    """Return a task as the columns of an insert, in order, but for its payload.

    Args:
        task: the task.
        moment: makes of a moment what the store keeps.
        seconds: makes of seconds what the store keeps.
    """
    retry = task.retry
    return {
        "id": task.id,
        "queue": task.queue,
        "priority": task.priority,
        "eta": None if task.eta is None else moment(task.eta),
        "function": task.function,
        "max_attempts": None if retry is None else retry.max_attempts,
        "timeout": task.timeout,
        "unique_key": task.unique_key,
        "unique_until": None if task.unique_until == "end" else task.unique_until,
        "expires_at": None if task.expires_at is None else moment(task.expires_at),
        "result_ttl": seconds(task.result_ttl),
        "retry_of": task.retry_of,
        "retry": None if retry is None else dump_policy(retry),
        "headers": dump_headers(task.headers),
    }


def select_list(fields: Iterable[str], **columns: str) -> str:
    """Return what a statement selects for some fields; ``columns`` are those of other names."""
    return ", ".join(columns.get(field, field) for field in fields)


def read_rows(read: Callable[[Any], T], rows: Iterable[Any]) -> list[T]:
    """Return rows as models, but for those that cannot be read: other programs write rows too."""
    found = []
    unreadable = 0
    for row in rows:
        try:
            found.append(read(row))
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            unreadable += 1
    if unreadable:
        _log.warning("%d rows of the store are none of sitq's: they are left out", unreadable)
    return found


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

    def to_reserved(self, row: Any) -> ReservedTask:
        """Read a row of a reservation; there is one for each task that runs."""
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
        """Read a row of `RESULT_FIELDS`; return ``None`` if the task is not final."""
        fields = dict(zip(RESULT_FIELDS, row, strict=True))
        if fields["finished_at"] is None:
            return None
        self._read_moments(fields, _RESULT_MOMENTS)
        fields["status"] = TaskStatus(fields["status"])
        fields["error"] = truncate(fields["error"], _MAX_ERROR)
        fields["traceback"] = truncate(fields["traceback"], _MAX_TRACEBACK)
        return Result(**fields)

    def to_info(self, row: Any) -> TaskInfo:
        """Read a row of `INFO_FIELDS`."""
        fields = dict(zip(INFO_FIELDS, row, strict=True))
        self._read_moments(fields, _INFO_MOMENTS)
        fields["status"] = TaskStatus(fields["status"])
        fields["progress"] = load_progress(fields["progress"])
        fields["error"] = truncate(fields["error"], _MAX_ERROR)
        fields["cancel_requested"] = bool(fields["cancel_requested"])
        return TaskInfo(**fields)

    def to_task(self, row: Any) -> Task:
        """Read a row of `TASK_FIELDS`."""
        fields = dict(zip(TASK_FIELDS, row, strict=True))
        self._read_moments(fields, _TASK_MOMENTS)
        if fields["retry"] is not None:
            fields["retry"] = load_policy(fields["retry"])
        if fields["unique_until"] is None:
            fields["unique_until"] = "end"
        fields["headers"] = load_headers(fields["headers"])
        return Task(**fields)

    def to_attempt(self, row: Any) -> FailedAttempt:
        """Read a row of `ATTEMPT_FIELDS`."""
        fields = dict(zip(ATTEMPT_FIELDS, row, strict=True))
        self._read_moments(fields, _ATTEMPT_MOMENTS)
        return FailedAttempt(**fields)

    def to_pause(self, row: Any) -> QueuePause:
        """Read a row of a pause; what it has too much of is cut off."""
        queue, reason, by, at, until = row
        fields = {"queue": queue, "reason": reason[:1000], "by": by[:256], "at": at, "until": until}
        self._read_moments(fields, _PAUSE_MOMENTS)
        return QueuePause(**fields)

    def _read_moments(self, fields: dict[str, Any], names: Iterable[str]) -> None:
        """Read those of a row's fields that are moments."""
        moment = self._moment
        if moment is not None:
            for name in names:
                if (stored := fields[name]) is not None:
                    fields[name] = moment(stored)
