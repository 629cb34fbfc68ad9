"""Rows of the PostgreSQL store as models, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._rows import INSERT_TYPES, TASK_FIELDS, RowReader, insert_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Task

__all__ = [
    "columns",
    "common_columns",
    "finite",
    "storable",
    "to_attempt",
    "to_info",
    "to_listed_info",
    "to_moment",
    "to_pause",
    "to_reserved",
    "to_result",
    "to_task",
]

_NUL: Final = "\0"
# The ends of Python's time; the driver would write them as infinite.
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC) + _MICROSECOND
_LAST: Final = datetime.max.replace(tzinfo=UTC) - _MICROSECOND
# What tasks may have in common that are due at once and have no more options.
_COMMON: Final = ("queue", "priority", "function", "result_ttl")
# Without a unique key, it does not matter how long it would be held.
_OWN: Final = {"id", "payload", "unique_until"}
_common: Final = attrgetter(*_COMMON)
_others: Final = attrgetter(*(name for name in TASK_FIELDS if name not in {*_COMMON, *_OWN}))

_reader: Final = RowReader()
to_info: Final = _reader.to_info
to_reserved: Final = _reader.to_reserved
to_result: Final = _reader.to_result
to_task: Final = _reader.to_task


def storable(text: str | None) -> str | None:
    r"""Return a text that PostgreSQL can store: a NUL character becomes ``\x00``."""
    if text is None or _NUL not in text:
        return text
    return text.replace(_NUL, "\\x00")


def finite(moment: datetime) -> datetime:
    """Return a moment as it is stored: the first and last of all are a microsecond nearer."""
    return max(_FIRST, min(moment, _LAST))


def to_moment(moment: datetime) -> datetime:
    """Return a moment of a row; what is infinite comes without a zone from the driver."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


_admin_reader: Final = RowReader(to_moment)
to_attempt: Final = _admin_reader.to_attempt
to_listed_info: Final = _admin_reader.to_info
to_pause: Final = _admin_reader.to_pause


def common_columns(pattern: Task) -> tuple[Any, ...] | None:
    """Return queue, priority, function and retention; ``None`` if there are other options."""
    return None if any(_others(pattern)) else _common(pattern)


def columns(tasks: Sequence[Task]) -> list[list[Any]]:
    """Return tasks as the columns of an insert."""
    rows = [insert_values(task, finite, float).values() for task in tasks]
    values = [list(column) for column in zip(*rows, strict=True)]
    payloads = [task.payload for task in tasks]
    return [*values, payloads] if tasks else [[] for _ in INSERT_TYPES]
