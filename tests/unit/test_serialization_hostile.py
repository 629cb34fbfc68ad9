"""Every way that a payload can be malformed is one error."""

from __future__ import annotations

import pathlib
from typing import Any

import msgpack
import pytest

from sitq.errors import SerializationError
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()


def ext(code: int, body: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, body))


def packed(value: object) -> bytes:
    return msgpack.packb(value)


TUPLE, SET, FROZENSET, DATETIME, DATE, TIME, TIMEDELTA, UUID, DECIMAL, PATH = range(1, 11)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\xa1\xff",
        b"\xd9\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\x00\x0f\x00\x00" * 10_000,
        b"\x91" * 65 + b"\x01",
        b"\x91" * 5_000 + b"\x01",
        b"\x91" * 1_000_000,
        b"\x82\x01\x01\x01\x02",
        b"\x82\x01\x01\xc3\x02",
        b"\x81\x91\x01\x01",
        b"\x81\x80\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x91\xd6\xff\x00\x00\x00\x00",
        ext(99, b""),
        b"\xc7\x00\xff",
        ext(TUPLE, b""),
        ext(TUPLE, packed(1)),
        ext(TUPLE, packed({})),
        ext(TUPLE, packed([]) + b"\x01"),
        ext(SET, packed([1, 1])),
        ext(SET, packed([1, True])),
        ext(SET, packed([[]])),
        ext(FROZENSET, packed("ab")),
        ext(DATETIME, packed(1)),
        ext(DATETIME, packed(["2024-01-01", 0])),
        ext(DATETIME, packed(["2024-13-01", 0, None])),
        ext(DATETIME, packed(["2024-01-01", 2, None])),
        ext(DATETIME, packed(["2024-01-01", 0, [10**12]])),
        ext(DATETIME, packed(["2024-01-01", 0, ["x"]])),
        ext(DATETIME, packed(["2024-01-01", 0, []])),
        ext(DATETIME, packed([b"2024-01-01", 0, None])),
        ext(DATETIME, packed(["2024-01-01", 0, [0, None, 1]])),
        ext(DATETIME, packed(["2024-01-01", 0, [None, None, "../../etc/passwd"]])),
        ext(DATE, b"2024-02-30"),
        ext(DATE, b"\xff"),
        ext(TIME, packed(["25:00", 0, None])),
        ext(TIME, packed([None, 0, None])),
        ext(TIMEDELTA, packed([10**10, 0, 0])),
        ext(TIMEDELTA, packed([1.5, 0, 0])),
        ext(TIMEDELTA, packed([1, 0])),
        ext(UUID, b"short"),
        ext(DECIMAL, b"one"),
        ext(DECIMAL, b""),
        ext(PATH, b""),
        ext(PATH, b"\x09x"),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_whatever_is_wrong_with_a_payload_is_one_error(data: bytes) -> None:
    with pytest.raises(SerializationError):
        serializer.loads(data)


def test_extensions_within_extensions_have_a_depth_too() -> None:
    data = packed(1)
    for _ in range(2_000):
        data = ext(TUPLE, b"\x91" + data)
    with pytest.raises(SerializationError, match="deep"):
        serializer.loads(data)


def test_lists_and_extensions_count_together() -> None:
    data = packed(1)
    for _ in range(33):
        data = b"\x91" + ext(TUPLE, b"\x91" + data)
    with pytest.raises(SerializationError, match="64 levels"):
        serializer.loads(data)


def test_a_path_of_another_system_is_refused_or_made() -> None:
    """Pure paths travel between systems; those of a file system belong to one."""
    other = 1 if isinstance(pathlib.Path(), pathlib.PosixPath) else 0
    with pytest.raises(SerializationError, match="cannot be made on this system"):
        serializer.loads(ext(PATH, bytes([other]) + b"x"))


@pytest.mark.parametrize("data", [None, "text", bytearray(b"\x01"), memoryview(b"\x01")])
def test_a_payload_is_bytes(data: Any) -> None:
    with pytest.raises(SerializationError, match=f"not {type(data).__name__}"):
        serializer.loads(data)
