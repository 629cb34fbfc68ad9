"""Conversion of instances of subclasses to the plain types that sitq stores.

A store, a driver or a serializer may misread an instance of a subclass, or fail. No method of the
subclass runs here.
"""

from __future__ import annotations

import decimal
import pathlib
import uuid
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["plain", "plain_member"]


def _datetime(value: datetime) -> datetime:
    # Its state as it is pickled: all that reads fields could be overridden.
    return datetime(*datetime.__reduce_ex__(value, 4)[1])  # noqa: DTZ001


def _date(value: date) -> date:
    return date(*date.__reduce__(value)[1])


def _time(value: time) -> time:
    return time(*time.__reduce_ex__(value, 4)[1])


def _timedelta(value: timedelta) -> timedelta:
    return timedelta(*timedelta.__reduce__(value)[1])


def _path(kind: type[pathlib.PurePath]) -> Callable[[Any], object]:
    return lambda value: kind(str.__str__(pathlib.PurePath.__str__(value)))


def _uuid(value: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(int=int.__int__(object.__getattribute__(value, "int")))


_BASES: Final[tuple[tuple[type, Callable[[Any], object]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes.__add__(b"", bytes.__getitem__(value, slice(None)))),
    (datetime, _datetime),
    (date, _date),
    (time, _time),
    (timedelta, _timedelta),
    (uuid.UUID, _uuid),
    (decimal.Decimal, lambda value: decimal.Decimal(decimal.Decimal.__str__(value))),
    *(
        (kind, _path(kind))
        for kind in (
            pathlib.PosixPath,
            pathlib.WindowsPath,
            pathlib.PurePosixPath,
            pathlib.PureWindowsPath,
        )
    ),
)
_EXACT: Final = frozenset({type(None), bool, *(base for base, _ in _BASES)})


def plain(value: Any) -> Any:
    """Return the value as one of the plain type that its class derives from, or as it is."""
    kind = type(value)
    if kind in _EXACT:
        return value
    for base, convert in _BASES:
        if issubclass(kind, base):
            return convert(value)
    return value


def plain_member(value: Any) -> Any:
    """Return `plain` of a value, or the value itself if that would lose something.

    A member of an enum would lose its name, a pandas ``Timestamp`` its nanoseconds. ``NaT`` is a
    datetime without a time.
    """
    kind = type(value)
    is_more = issubclass(kind, Enum) or str(kind.__module__).partition(".")[0] == "pandas"
    return value if is_more else plain(value)
