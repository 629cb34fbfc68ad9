"""The msgpack extension types for values that msgpack itself does not know.

Each kind has a code, a function that writes its body and one that reads it. The codes and the
bodies are stored in files: never change one, add a new one.
"""

from __future__ import annotations

import decimal
import pathlib
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from zoneinfo import ZoneInfo

from pydantic_core import TzInfo

from sitq._validation import with_article
from sitq.errors import SerializationError
from sitq.payload._limits import check_decimal, check_decimal_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Pack = Callable[[object], bytes]
    Write = Callable[[Any, Pack], bytes]
    Read = Callable[[bytes, "Source"], Any]

__all__ = ["CONTAINERS", "DECODERS", "ENCODERS", "LEAVES", "Source"]

M = TypeVar("M", datetime, time)
S = TypeVar("S", set[Any], frozenset[Any])

CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})
_TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _PATH = range(1, 11)
_UUID_SIZE: Final = 16
_PATHS: Final[tuple[type[pathlib.PurePath], ...]] = (
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)
_MICROSECOND: Final = timedelta(microseconds=1)


class Source(Protocol):
    """Reads the bodies of extensions, within the limits of one payload."""

    def read(self, data: bytes) -> Any:
        """Decode msgpack."""
        ...

    def check_zone(self, key: str) -> None:
        """Check that a named time zone can be looked up in a short time."""
        ...

    def check_keys(self, keys: Sequence[Any]) -> None:
        """Check that a set can be built of keys in a short time."""
        ...


def _zone(moment: datetime | time) -> object:
    """Write a time zone: nothing, ``[offset, name]`` or ``[offset, None, key]``."""
    zone = moment.tzinfo
    if zone is None:
        return None
    offset = moment.utcoffset()
    micros = None if offset is None else offset // _MICROSECOND
    if type(zone) is timezone:
        plain = offset is not None and str(zone) == str(timezone(offset))
        return [micros] if plain else [micros, str(zone)]
    if type(zone) is TzInfo:
        return [micros]
    if type(zone) is ZoneInfo and zone.key:
        return [micros, None, zone.key]
    raise SerializationError(
        f"{with_article(type(moment))} whose tzinfo is {with_article(type(zone))} "
        "cannot be stored; use datetime.timezone or zoneinfo.ZoneInfo with a key"
    )


@lru_cache(maxsize=256)
def _fixed(micros: int, name: str | None) -> tzinfo:
    offset = timedelta(microseconds=micros)
    if name is not None:
        return timezone(offset, name)
    return timezone(offset) if offset else UTC


def _named(key: str, source: Source) -> tzinfo:
    source.check_zone(key)
    try:
        return ZoneInfo(key)
    except (LookupError, ValueError, OSError):
        raise SerializationError(
            "the payload holds a time zone that is unknown on this machine; "
            "install the package tzdata, or use UTC or a fixed offset"
        ) from None


def _aware(naive: M, zone: list[Any] | None, source: Source) -> M:
    """Restore a datetime's zone; a fixed offset if this machine's data for the zone differ."""
    if zone is None:
        return naive
    micros, name, key, *_ = zone + [None, None]  # noqa: RUF005 - for mypy
    if key is not None:
        aware = naive.replace(tzinfo=_named(key, source))
        offset = aware.utcoffset()
        if (None if offset is None else offset // _MICROSECOND) == micros:
            return aware
    if micros is None:  # a time of day whose zone differs here has no offset
        raise SerializationError("the time zone of a time is another one on this machine")
    return naive.replace(tzinfo=_fixed(micros, name))


def _write_datetime(value: datetime, pack: Pack) -> bytes:
    return pack([value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)])


def _read_datetime(body: bytes, source: Source) -> datetime:
    text, fold, zone = source.read(body)
    return _aware(datetime.fromisoformat(text).replace(tzinfo=None, fold=fold), zone, source)


def _write_time(value: time, pack: Pack) -> bytes:
    return pack([value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)])


def _read_time(body: bytes, source: Source) -> time:
    text, fold, zone = source.read(body)
    return _aware(time.fromisoformat(text).replace(tzinfo=None, fold=fold), zone, source)


def _write_timedelta(value: timedelta, pack: Pack) -> bytes:
    return pack([value.days, value.seconds, value.microseconds])


def _read_timedelta(body: bytes, source: Source) -> timedelta:
    days, seconds, micros = map(_integer, source.read(body))
    return timedelta(days, seconds, micros)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise SerializationError("malformed payload: a timedelta holds something else than ints")
    return value


def _read_uuid(body: bytes, _source: Source) -> uuid.UUID:
    if len(body) != _UUID_SIZE:
        raise SerializationError("malformed payload: a UUID is not 16 bytes long")
    return uuid.UUID(bytes=body)


def _write_path(value: pathlib.PurePath, _pack: Pack) -> bytes:
    # Names on POSIX are bytes; Python shows those that are not UTF-8 as surrogates.
    return bytes([_PATHS.index(type(value))]) + str(value).encode("utf-8", "surrogateescape")


def _read_path(body: bytes, _source: Source) -> pathlib.PurePath:
    kind = _PATHS[body[0]]
    try:
        return kind(body[1:].decode("utf-8", "surrogateescape"))
    except NotImplementedError:
        raise SerializationError(f"{with_article(kind)} cannot be made on this system") from None


def _write_decimal(value: decimal.Decimal, _pack: Pack) -> bytes:
    check_decimal(value)
    return str(value).encode()


def _read_decimal(body: bytes, _source: Source) -> decimal.Decimal:
    check_decimal_text(len(body))
    value = decimal.Decimal(body.decode())
    check_decimal(value)
    return value


def _write_items(value: Iterable[object], pack: Pack) -> bytes:
    return pack(list(value))


def _read_items(body: bytes, source: Source) -> list[Any]:
    items = source.read(body)
    if type(items) is not list:
        raise SerializationError("malformed payload: the items of a collection are not a list")
    return items


def _read_tuple(body: bytes, source: Source) -> tuple[Any, ...]:
    return tuple(_read_items(body, source))


def _read_frozenset(body: bytes, source: Source) -> frozenset[Any]:
    return _distinct(frozenset, body, source)


def _read_set(body: bytes, source: Source) -> set[Any]:
    return _distinct(set, body, source)


def _distinct(kind: Callable[[list[Any]], S], body: bytes, source: Source) -> S:
    items = _read_items(body, source)
    source.check_keys(items)
    # Built from the list, in the order that was checked: a copy of a set has another order.
    found = kind(items)
    if len(found) != len(items):
        raise SerializationError("malformed payload: a set holds an item twice")
    return found


ENCODERS: Final[Mapping[type, tuple[int, Write]]] = {
    tuple: (_TUPLE, _write_items),
    set: (_SET, _write_items),
    frozenset: (_FROZENSET, _write_items),
    datetime: (_DATETIME, _write_datetime),
    date: (_DATE, lambda value, _: value.isoformat().encode()),
    time: (_TIME, _write_time),
    timedelta: (_TIMEDELTA, _write_timedelta),
    uuid.UUID: (_UUID, lambda value, _: value.bytes),
    decimal.Decimal: (_DECIMAL, _write_decimal),
    **dict.fromkeys(_PATHS, (_PATH, _write_path)),
}
DECODERS: Final[Mapping[int, Read]] = {
    _TUPLE: _read_tuple,
    _SET: _read_set,
    _FROZENSET: _read_frozenset,
    _DATETIME: _read_datetime,
    _DATE: lambda body, _: date.fromisoformat(body.decode()),
    _TIME: _read_time,
    _TIMEDELTA: _read_timedelta,
    _UUID: _read_uuid,
    _DECIMAL: _read_decimal,
    _PATH: _read_path,
}
LEAVES: Final[frozenset[type]] = (
    frozenset({type(None), bool, int, float, str, bytes}) | ENCODERS.keys()
) - CONTAINERS
