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
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

from pydantic_core import TzInfo

from sitq.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Pack = Callable[[object], bytes]
    Unpack = Callable[[bytes], Any]
    Write = Callable[[Any, Pack], bytes]
    Read = Callable[[bytes, Unpack], Any]

__all__ = ["CONTAINERS", "DECODERS", "ENCODERS", "LEAVES"]

M = TypeVar("M", datetime, time)

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
        f"a {type(moment).__name__} whose tzinfo is a {type(zone).__qualname__} cannot be carried; "
        "use datetime.timezone or zoneinfo.ZoneInfo with a key"
    )


@lru_cache(maxsize=256)
def _fixed(micros: int, name: str | None) -> tzinfo:
    offset = timedelta(microseconds=micros)
    if name is not None:
        return timezone(offset, name)
    return timezone(offset) if offset else UTC


def _named(key: str) -> tzinfo | None:
    try:
        return ZoneInfo(key)
    except (LookupError, ValueError, OSError):  # unknown here, or no such name
        return None


def _aware(naive: M, zone: list[Any] | None) -> M:
    """Give a moment its zone back; its fixed offset if this machine reads the zone otherwise."""
    if zone is None:
        return naive
    micros, name, key, *_ = zone + [None, None]  # noqa: RUF005 - for mypy
    named = None if key is None else _named(key)
    if named is not None:
        aware = naive.replace(tzinfo=named)
        offset = aware.utcoffset()
        if (None if offset is None else offset // _MICROSECOND) == micros:
            return aware
    if micros is None:  # a time of day in a zone that is unknown here has no offset to fall back to
        raise SerializationError("the time zone of a time is unknown on this machine")
    return naive.replace(tzinfo=_fixed(micros, name))


def _write_datetime(value: datetime, pack: Pack) -> bytes:
    return pack([value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)])


def _read_datetime(body: bytes, unpack: Unpack) -> datetime:
    text, fold, zone = unpack(body)
    return _aware(datetime.fromisoformat(text).replace(tzinfo=None, fold=fold), zone)


def _write_time(value: time, pack: Pack) -> bytes:
    return pack([value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)])


def _read_time(body: bytes, unpack: Unpack) -> time:
    text, fold, zone = unpack(body)
    return _aware(time.fromisoformat(text).replace(tzinfo=None, fold=fold), zone)


def _write_timedelta(value: timedelta, pack: Pack) -> bytes:
    return pack([value.days, value.seconds, value.microseconds])


def _read_timedelta(body: bytes, unpack: Unpack) -> timedelta:
    days, seconds, micros = map(_integer, unpack(body))
    return timedelta(days, seconds, micros)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise SerializationError("malformed payload: a timedelta holds something else than ints")
    return value


def _read_uuid(body: bytes, _unpack: Unpack) -> uuid.UUID:
    if len(body) != _UUID_SIZE:
        raise SerializationError("malformed payload: a UUID is not 16 bytes long")
    return uuid.UUID(bytes=body)


def _write_path(value: pathlib.PurePath, _pack: Pack) -> bytes:
    # Names on POSIX are bytes; Python shows those that are not UTF-8 as surrogates.
    return bytes([_PATHS.index(type(value))]) + str(value).encode("utf-8", "surrogateescape")


def _read_path(body: bytes, _unpack: Unpack) -> pathlib.PurePath:
    kind = _PATHS[body[0]]
    try:
        return kind(body[1:].decode("utf-8", "surrogateescape"))
    except NotImplementedError:
        raise SerializationError(f"a {kind.__name__} cannot be made on this system") from None


def _write_items(value: Iterable[object], pack: Pack) -> bytes:
    return pack(list(value))


def _read_items(body: bytes, unpack: Unpack) -> list[Any]:
    items = unpack(body)
    if type(items) is not list:
        raise SerializationError("malformed payload: the items of a collection are not a list")
    return items


def _read_tuple(body: bytes, unpack: Unpack) -> tuple[Any, ...]:
    return tuple(_read_items(body, unpack))


def _read_frozenset(body: bytes, unpack: Unpack) -> frozenset[Any]:
    items = _read_items(body, unpack)
    found = frozenset(items)
    if len(found) != len(items):
        raise SerializationError("malformed payload: a set holds an item twice")
    return found


def _read_set(body: bytes, unpack: Unpack) -> set[Any]:
    return set(_read_frozenset(body, unpack))


ENCODERS: Final[Mapping[type, tuple[int, Write]]] = {
    tuple: (_TUPLE, _write_items),
    set: (_SET, _write_items),
    frozenset: (_FROZENSET, _write_items),
    datetime: (_DATETIME, _write_datetime),
    date: (_DATE, lambda value, _: value.isoformat().encode()),
    time: (_TIME, _write_time),
    timedelta: (_TIMEDELTA, _write_timedelta),
    uuid.UUID: (_UUID, lambda value, _: value.bytes),
    decimal.Decimal: (_DECIMAL, lambda value, _: str(value).encode()),
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
    _DECIMAL: lambda body, _: decimal.Decimal(body.decode()),
    _PATH: _read_path,
}
LEAVES: Final[frozenset[type]] = (
    frozenset({type(None), bool, int, float, str, bytes}) | ENCODERS.keys()
) - CONTAINERS
