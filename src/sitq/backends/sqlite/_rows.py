"""Rows of the SQLite store as models, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from sitq.backends._rows import INFO_FIELDS, RowReader, select_list

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EXPIRED",
    "INFO_COLUMNS",
    "Row",
    "dump_rows",
    "from_micros",
    "pack_blob",
    "to_attempt",
    "to_info",
    "to_micros",
    "to_moment",
    "to_pause",
    "to_reserved",
    "to_result",
    "to_task",
]

Row = tuple[Any, ...]
# The columns of a task that has expired.
EXPIRED: Final = {"status": "expired", "value": None, "error": None, "traceback": None}

# What a statement selects for a `TaskInfo`; it joins the leases.
INFO_COLUMNS: Final = select_list(
    INFO_FIELDS,
    task_id="tasks.id",
    progress="leases.progress",
    cancel_requested="leases.cancelled",
    worker="leases.worker",
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# The ends of Python's time.
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)

dump_rows: Final = json.JSONEncoder(separators=(",", ":")).encode


def to_micros(moment: datetime) -> int:
    """Return the microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


@lru_cache(maxsize=16)  # what was stored by one transaction has one moment
def from_micros(micros: int) -> datetime:
    """Return the moment, aware, in UTC."""
    return _EPOCH + timedelta(0, 0, micros)


def to_moment(micros: int) -> datetime:
    """Return the moment, or the end of Python's time that is nearest to it."""
    try:
        return from_micros(micros)
    except OverflowError:
        return _LAST if micros > 0 else _FIRST


_reader: Final = RowReader(from_micros)
to_info: Final = _reader.to_info
to_reserved: Final = _reader.to_reserved
to_result: Final = _reader.to_result
to_task: Final = _reader.to_task
_admin_reader: Final = RowReader(to_moment)
to_attempt: Final = _admin_reader.to_attempt
to_pause: Final = _admin_reader.to_pause


def pack_blob(parts: Iterable[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Join parts to one blob; return it with the start (from 1) and length of each."""
    pieces = list(parts)
    lengths = [len(piece) for piece in pieces]
    starts = accumulate(lengths, initial=1)
    return b"".join(pieces), list(zip(starts, lengths, strict=False))
