"""Rows of the PostgreSQL store as models, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._rows import RowReader, dump_headers, dump_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Task

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
# The ends of Python's time; the driver would write them as infinite.
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC) + _MICROSECOND
_LAST: Final = datetime.max.replace(tzinfo=UTC) - _MICROSECOND
# All that an insert needs but id and payload; the simplest tasks have none from `_OTHERS` on.
_all_but_payload: Final = attrgetter(
    "queue", "priority", "function", "result_ttl",
    "eta", "retry", "unique_key", "expires_at", "timeout", "retry_of", "headers",
)  # fmt: skip
_OTHERS: Final = slice(4, None)

_reader: Final = RowReader()
to_info: Final = _reader.to_info
to_reserved: Final = _reader.to_reserved
to_result: Final = _reader.to_result
to_task: Final = _reader.to_task


def storable(text: str | None) -> str | None:
    r"""A text that PostgreSQL can take: a NUL character, which it cannot, becomes ``\x00``."""
    if text is None or _NUL not in text:
        return text
    return text.replace(_NUL, "\\x00")


def _finite(moment: datetime | None) -> datetime | None:
    """A moment as it is stored: the first and the last one of all come a microsecond nearer."""
    return None if moment is None else max(_FIRST, min(moment, _LAST))


def common_columns(pattern: Task) -> tuple[Any, ...] | None:
    """What tasks like this one have in common, if they are due at once and have no more options.

    Queue, priority, function and retention; ``None`` if they have other options.
    """
    fields = _all_but_payload(pattern)
    return None if any(fields[_OTHERS]) else fields[: _OTHERS.start]


def columns(tasks: Sequence[Task]) -> list[list[Any]]:
    """Tasks as the columns of an insert."""
    return [
        [task.id for task in tasks],
        [task.queue for task in tasks],
        [task.priority for task in tasks],
        [_finite(task.eta) for task in tasks],
        [task.function for task in tasks],
        [None if task.retry is None else task.retry.max_attempts for task in tasks],
        [task.timeout for task in tasks],
        [task.unique_key for task in tasks],
        [None if task.unique_until == "end" else task.unique_until for task in tasks],
        [_finite(task.expires_at) for task in tasks],
        [task.result_ttl for task in tasks],
        [task.retry_of for task in tasks],
        [None if task.retry is None else dump_policy(task.retry) for task in tasks],
        [dump_headers(task.headers) for task in tasks],
        [task.payload for task in tasks],
    ]
