"""msgpack with extension types for values that msgpack itself does not know.

Each kind has a code, a function that writes its body and one that reads it. The codes and the
bodies are stored in files: never change one, add a new one.
"""

from __future__ import annotations

import decimal
import pathlib
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

import msgpack
from pydantic_core import TzInfo

from sitq._validation import with_article
from sitq.errors import SerializationError
from sitq.payload._collision_limits import KeyBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping

    Write = Callable[[Any], bytes]
    Read = Callable[[bytes, "Reader"], Any]

__all__ = ["CONTAINERS", "LEAVES", "Reader", "cannot_store", "items_of", "pack"]

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
_MAX_DIGITS: Final = 1000
_MAX_EXPONENT: Final = 1000
# Beside the digits: a sign, a point and an exponent; or NaN.
_LONGEST_DECIMAL: Final = _MAX_DIGITS + 32
# A smaller payload cannot declare enough values to be worth a scan before decoding.
_SMALL: Final = 1024
# The cost of containers and extensions beside their items, in values; and how many bytes of an
# extension, which are copied at each level, count as one more value.
_PER_LIST: Final = 3
_PER_MAP: Final = 6
_PER_PAIR: Final = 3
_PER_EXTENSION: Final = 12
_BYTES_PER_VALUE: Final = 64
_PER_ZONE: Final = 400
_INITIAL_BUFFER: Final = 512


class Reader:
    """Reads one payload, within limits.

    Args:
        max_depth: how deeply extensions may be nested.
        max_values: how many values it may hold; ``None``: it is too small to be counted.
    """

    __slots__ = ("_depth", "_key_budget", "_left", "_max_values", "_zones")

    def __init__(self, max_depth: int, max_values: int | None) -> None:
        self._depth = max_depth
        self._max_values: Final = max_values
        if max_values is not None:
            self._left = max_values
            self._key_budget = KeyBudget()
            self._zones: set[str] = set()

    def read(self, data: bytes) -> Any:
        """Decode msgpack."""
        if len(data) > _SMALL:
            # A few bytes can declare a list of millions, which msgpack would allocate at once.
            # Skipping over the payload detects that without building anything.
            scanner = msgpack.Unpacker(max_buffer_size=len(data))
            scanner.feed(data)
            scanner.skip()
        is_counted = self._max_values is not None
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=self._extension,
            object_pairs_hook=self._mapping if is_counted else _mapping,
            list_hook=self._list if is_counted else None,
        )

    def read_items(self, body: bytes) -> list[Any]:
        """Decode the items of a collection."""
        items = self.read(body)
        if type(items) is not list:
            raise SerializationError("malformed payload: the items of a collection are not a list")
        return items

    def check_zone(self, key: str) -> None:
        """Count a named time zone, which is read from a file at its first use."""
        if self._max_values is not None and key not in self._zones:
            self._zones.add(key)
            self._take(_PER_ZONE)

    def check_set(self, items: list[Any]) -> None:
        """Check that a set can be built of items in a short time."""
        if self._max_values is not None:
            self._key_budget.take(items, set)

    def _take(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise SerializationError(
                f"the payload holds more than {self._max_values:,} values (a container or a value "
                "with a type of its own counts as several); store the data elsewhere and pass "
                "where it is, or pass bytes"
            )

    def _list(self, items: list[Any]) -> list[Any]:
        self._take(_PER_LIST + len(items))
        return items

    def _mapping(self, pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
        self._take(_PER_MAP + _PER_PAIR * len(pairs))
        self._key_budget.take([key for key, _ in pairs], dict)
        return _mapping(pairs)

    def _extension(self, code: int, body: bytes) -> Any:
        if self._max_values is not None:
            self._take(_PER_EXTENSION + len(body) // _BYTES_PER_VALUE)
        read = _DECODERS.get(code)
        if read is None:
            raise SerializationError(f"malformed payload: unknown extension type {code}")
        if not self._depth:
            raise SerializationError("a payload is nested too deeply")
        self._depth -= 1
        value = read(body, self)
        self._depth += 1
        return value


def _mapping(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SerializationError("malformed payload: a map holds a key twice")
    return found


def pack(value: object) -> bytes:
    """Encode a plain value.

    Raises:
        SerializationError: it holds a value that is not plain.
        OverflowError: an int does not fit into 64 bits.
    """
    # A new packer each time: it holds a buffer, and threads must not share it.
    return msgpack.Packer(
        default=_extension, strict_types=True, use_bin_type=True, buf_size=_INITIAL_BUFFER
    ).pack(value)


def _extension(value: Any) -> msgpack.ExtType:
    known = _ENCODERS.get(type(value))
    if type(value) is int:  # msgpack asks here too about ints that do not fit
        raise OverflowError
    if known is None:
        raise cannot_store(type(value))
    code, write = known
    return msgpack.ExtType(code, write(value))


def items_of(container: Any) -> Collection[Any]:
    """Return what a container holds: of a dict, its keys and its values."""
    return [*container, *container.values()] if type(container) is dict else container


def cannot_store(kind: type) -> SerializationError:
    """Return the error about a value of a type that is not plain."""
    hint = "annotate it with its type, or give plain values"
    if kind in {bytearray, memoryview}:
        hint = "pass bytes"
    return SerializationError(f"a value of type {kind.__qualname__} cannot be stored; {hint}")


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


def _aware(naive: M, zone: list[Any] | None, reader: Reader) -> M:
    """Restore a datetime's zone; a fixed offset if this machine's data for the zone differ."""
    if zone is None:
        return naive
    micros, name, key, *_ = zone + [None, None]  # noqa: RUF005 - for mypy
    if key is not None:
        reader.check_zone(key)
        try:
            aware = naive.replace(tzinfo=ZoneInfo(key))
        except (LookupError, ValueError, OSError):
            raise SerializationError(
                "the payload holds a time zone that is unknown on this machine; "
                "install the package tzdata, or use UTC or a fixed offset"
            ) from None
        offset = aware.utcoffset()
        if (None if offset is None else offset // _MICROSECOND) == micros:
            return aware
    if micros is None:  # a time of day whose zone differs here has no offset
        raise SerializationError("the time zone of a time is another one on this machine")
    return naive.replace(tzinfo=_fixed(micros, name))


def _write_moment(value: datetime | time) -> bytes:
    return pack([value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)])


def _read_moment(kind: type[M], body: bytes, reader: Reader) -> M:
    text, fold, zone = reader.read(body)
    return _aware(kind.fromisoformat(text).replace(tzinfo=None, fold=fold), zone, reader)


def _write_timedelta(value: timedelta) -> bytes:
    return pack([value.days, value.seconds, value.microseconds])


def _read_timedelta(body: bytes, reader: Reader) -> timedelta:
    days, seconds, micros = map(_integer, reader.read(body))
    return timedelta(days, seconds, micros)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise SerializationError("malformed payload: a timedelta holds something else than ints")
    return value


def _read_uuid(body: bytes, _: Reader) -> uuid.UUID:
    if len(body) != _UUID_SIZE:
        raise SerializationError("malformed payload: a UUID is not 16 bytes long")
    return uuid.UUID(bytes=body)


def _write_path(value: pathlib.PurePath) -> bytes:
    # Names on POSIX are bytes; Python shows those that are not UTF-8 as surrogates.
    return bytes([_PATHS.index(type(value))]) + str(value).encode("utf-8", "surrogateescape")


def _read_path(body: bytes, _: Reader) -> pathlib.PurePath:
    kind = _PATHS[body[0]]
    try:
        return kind(body[1:].decode("utf-8", "surrogateescape"))
    except NotImplementedError:
        raise SerializationError(f"{with_article(kind)} cannot be made on this system") from None


def _bounded(value: decimal.Decimal) -> decimal.Decimal:
    """Return a number that can be used as any other: as an int, say."""
    exponent = abs(value.adjusted()) if value.is_finite() else 0
    if len(value.as_tuple().digits) > _MAX_DIGITS or exponent > _MAX_EXPONENT:
        raise _unbounded()
    return value


def _unbounded() -> SerializationError:
    return SerializationError(
        f"a Decimal has more than {_MAX_DIGITS:,} digits or an exponent beyond {_MAX_EXPONENT:,}; "
        "pass it as a str"
    )


def _read_decimal(body: bytes, _: Reader) -> decimal.Decimal:
    if len(body) > _LONGEST_DECIMAL:
        raise _unbounded()
    return _bounded(decimal.Decimal(body.decode()))


def _write_items(value: tuple[Any, ...] | set[Any] | frozenset[Any]) -> bytes:
    return pack([*value])


def _read_set(kind: Callable[[list[Any]], S], body: bytes, reader: Reader) -> S:
    items = reader.read_items(body)
    reader.check_set(items)
    # Built from the list, in the order that was checked: a copy of a set has another order.
    found = kind(items)
    if len(found) != len(items):
        raise SerializationError("malformed payload: a set holds an item twice")
    return found


_ENCODERS: Final[Mapping[type, tuple[int, Write]]] = {
    tuple: (_TUPLE, _write_items),
    set: (_SET, _write_items),
    frozenset: (_FROZENSET, _write_items),
    datetime: (_DATETIME, _write_moment),
    date: (_DATE, lambda value: value.isoformat().encode()),
    time: (_TIME, _write_moment),
    timedelta: (_TIMEDELTA, _write_timedelta),
    uuid.UUID: (_UUID, lambda value: value.bytes),
    decimal.Decimal: (_DECIMAL, lambda value: str(_bounded(value)).encode()),
    **dict.fromkeys(_PATHS, (_PATH, _write_path)),
}
_DECODERS: Final[Mapping[int, Read]] = {
    _TUPLE: lambda body, reader: tuple(reader.read_items(body)),
    _SET: partial(_read_set, set),
    _FROZENSET: partial(_read_set, frozenset),
    _DATETIME: partial(_read_moment, datetime),
    _DATE: lambda body, _: date.fromisoformat(body.decode()),
    _TIME: partial(_read_moment, time),
    _TIMEDELTA: _read_timedelta,
    _UUID: _read_uuid,
    _DECIMAL: _read_decimal,
    _PATH: _read_path,
}
LEAVES: Final[frozenset[type]] = (
    frozenset({type(None), bool, int, float, str, bytes}) | _ENCODERS.keys()
) - CONTAINERS
