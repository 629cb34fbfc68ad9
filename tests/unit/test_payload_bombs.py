"""Decoding is bounded in time: no payload under the size limit holds the event loop up."""

from __future__ import annotations

import contextlib
import decimal
import fractions
import ipaddress
import pathlib
import re
import time
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import msgpack
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from sitq import SerializationError, SitqError, ValidationError
from sitq.payload._value_codec import ValueCodec
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()
TUPLE, SET, FROZENSET, DATETIME, DATE, TIME, TIMEDELTA, UUID, DECIMAL, PATH = range(1, 11)
# What hashes of ints are taken modulo of, in CPython.
MODULUS = 2**61 - 1
# 50 ms on the machine that the limits were chosen on, where this loop takes about 10 ms.
LIMIT = 5.0


def ext(code: int, body: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, body))


def many(count: int, item: bytes) -> bytes:
    """A list of one item so many times, as far as the size limit allows."""
    count = min(count, 1_000_000 // max(len(item), 1))
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def uuids(count: int) -> list[bytes]:
    """Ids whose hashes are equal."""
    return [uuid.UUID(int=number * MODULUS).bytes for number in range(count)]


def baseline() -> float:
    """Seconds that this machine takes now for a fixed piece of work."""
    start = time.thread_time()
    sum(number * number for number in range(150_000))
    return time.thread_time() - start


def cost(work: Callable[[], object]) -> float:
    """How long a piece of work takes, in units of the baseline: the best of ten."""
    best = float("inf")
    for _ in range(10):
        unit = min(baseline() for _ in range(2))
        start = time.thread_time()
        with contextlib.suppress(SitqError):
            work()
        best = min(best, (time.thread_time() - start) / unit)
        if best < LIMIT:
            break
    return best


def wrapped(data: bytes, levels: int) -> bytes:
    for _ in range(levels):
        data = ext(TUPLE, b"\x91" + data)
    return data


BOMBS = {
    "an int of a decimal": ext(DECIMAL, b"1E+10000000"),
    "a small decimal": ext(DECIMAL, b"1E-10000000"),
    "decimal digits": ext(DECIMAL, b"1" * 1_000_000),
    "digits of a NaN": ext(DECIMAL, b"NaN" + b"1" * 1_000_000),
    "ints": many(1_000_000, b"\x01"),
    "empty dicts": many(1_000_000, b"\x80"),
    "empty lists": many(1_000_000, b"\x90"),
    "lists of lists": many(300_000, b"\x91\x90"),
    "tuples": many(250_000, ext(TUPLE, b"\x90")),
    "sets": many(250_000, ext(SET, b"\x90")),
    "uuids": many(50_000, ext(UUID, b"1" * 16)),
    "dates": many(80_000, ext(DATE, b"2024-01-01")),
    "timedeltas": many(160_000, ext(TIMEDELTA, b"\x93\x01\x01\x01")),
    "paths": many(200_000, ext(PATH, b"\x00a")),
    "zones": many(
        14_000, ext(DATETIME, msgpack.packb(["2024-01-01T00:00", 0, [0, None, "Europe/London"]]))
    ),
    "unknown zones": many(
        14_000, ext(DATETIME, msgpack.packb(["2024-01-01T00:00", 0, [0, None, "No/Where"]]))
    ),
    "nested tuples": wrapped(msgpack.packb("a" * 1_000_000), 60),
    "a set of uuids of one hash": ext(
        SET, b"\xdd" + (40_000).to_bytes(4, "big") + b"".join(ext(UUID, b) for b in uuids(40_000))
    ),
    "a dict of uuids of one hash": b"\xdf"
    + (40_000).to_bytes(4, "big")
    + b"".join(ext(UUID, b) + b"\x01" for b in uuids(40_000)),
    "decimals of one hash": ext(
        SET,
        b"\xdd"
        + (20_000).to_bytes(4, "big")
        + b"".join(ext(DECIMAL, b"%d" % (n * MODULUS)) for n in range(20_000)),
    ),
    "many sets of one hash": many(
        40, ext(SET, b"\xdc\x04\x00" + b"".join(ext(UUID, b) for b in uuids(1024)))
    ),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_payload_is_decoded_or_refused_in_a_short_time(data: bytes) -> None:
    assert len(data) <= 1_048_576
    assert cost(lambda: serializer.loads(data)) < LIMIT


def nines(count: int) -> str:
    return "9" * count


class Model(pydantic.BaseModel):
    number: int = 0


class Host(pydantic.BaseModel):
    addresses: list[ipaddress.IPv6Interface]


class Parsed(pydantic.BaseModel):
    text: pydantic.Json[Any]


class Numbers(pydantic.BaseModel):
    numbers: set[int] = set()
    ids: frozenset[uuid.UUID] = frozenset()
    names: dict[int, int] = {}
    pairs: set[tuple[int, int]] = set()
    texts: list[str] = []


class Plus(pydantic.BaseModel):
    left: Plus | Minus | int
    right: Plus | Minus | int = 0


class Minus(pydantic.BaseModel):
    left: Plus | Minus | int
    right: Plus | Minus | int = 0


Items = TypeAliasType("Items", "list[Items] | tuple[Items, ...] | int")
Tree = TypeAliasType("Tree", "dict[str, Tree] | list[Tree] | int | None")


def nested(levels: int, item: Any, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(levels):
        item = wrap(item)
    return item


REBUILT: dict[str, tuple[Any, Any]] = {
    "nested models of a union": (Plus, nested(16, 1, lambda inner: {"left": inner})),
    "wrong models of a union": (Plus, nested(16, "x", lambda inner: {"left": inner})),
    "an int of text": (int, nines(1_000_000)),
    "ints of text": (list[int], [nines(4300)] * 240),
    "a Decimal of text": (decimal.Decimal, "1E+10000000"),
    "a Fraction of text": (fractions.Fraction, "1E+10000000"),
    "a float of text": (float, nines(1_000_000)),
    "wrong ints": (list[int], ["x"] * 100_000),
    "wrong models": (list[Model], [1] * 24_000),
    "more wrong models": (list[Model], [1] * 130_000),
    "values of no type of a union": (list[float | Model | uuid.UUID], ["x"] * 100_000),
    "addresses": (list[ipaddress.IPv6Interface], ["::1/64"] * 100_000),
    "addresses of a model": (Host, {"addresses": ["::1/64"] * 100_000}),
    "paths": (dict[str, pathlib.Path | int], {str(n): "a" for n in range(60_000)}),
    "time zones": (list[zoneinfo.ZoneInfo], sorted(zoneinfo.available_timezones())),
    "a long regular expression": (re.Pattern[str], "a" * 1_000_000),
    "a regular expression": (re.Pattern[str], "(?i)" + "[\0-\uffff]" * 150),
    "regular expressions": (list[re.Pattern[str]], ["(?i)[\\u0000-\\uffff]"] * 1_000),
    "JSON": (Parsed, {"text": "[" + "[]," * 300_000 + "1]"}),
    "a Fraction of digits": (fractions.Fraction, "1." + "1" * 1_000_000),
    "Fractions of exponents": (list[fractions.Fraction], ["1E+1000000"] * 100),
    "texts of one hash": (Numbers, {"numbers": [str(n * MODULUS) for n in range(20_000)]}),
    "ids of one hash": (
        Numbers,
        {"ids": [str(uuid.UUID(int=n * MODULUS)) for n in range(20_000)]},
    ),
    "keys of one hash": (Numbers, {"names": {str(n * MODULUS): 1 for n in range(20_000)}}),
    "pairs of one hash": (Numbers, {"pairs": [[str(n * MODULUS), 1] for n in range(20_000)]}),
}


@pytest.mark.parametrize(("annotation", "plain"), REBUILT.values(), ids=REBUILT)
def test_a_value_is_rebuilt_or_refused_in_a_short_time(annotation: Any, plain: Any) -> None:
    data = msgpack.packb(plain)
    codec = ValueCodec(annotation)
    with contextlib.suppress(SitqError):
        codec.load(None)  # what is built once is not the payload's
    assert cost(lambda: codec.load(serializer.loads(data))) < LIMIT


@pytest.mark.parametrize(
    "value",
    [
        Numbers(
            numbers=set(range(5000)),
            ids=frozenset(uuid.uuid4() for _ in range(1500)),
            names=dict.fromkeys(range(5000), 1),
            pairs={(number, -number) for number in range(1500)},
            texts=["same", "12e45678"] * 3000,
        ),
        Host(addresses=[ipaddress.IPv6Interface("::1/64")] * 1000),
    ],
    ids=["numbers", "host"],
)
def test_large_values_that_are_quick_to_read_are_carried(value: pydantic.BaseModel) -> None:
    codec = ValueCodec(type(value))
    assert codec.load(serializer.loads(serializer.dumps(codec.dump(value)))) == value


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Tree, nested(25, 1, lambda inner: {"a": [inner, None]} if inner else [inner])),
        (Items, nested(50, 1, lambda inner: [inner])),
        (Plus, nested(8, 1, lambda inner: Plus(left=inner))),
    ],
    ids=["tree", "items", "models"],
)
def test_nested_values_are_carried_where_few_types_read_each(annotation: Any, value: Any) -> None:
    codec = ValueCodec(annotation)
    assert codec.load(serializer.loads(serializer.dumps(codec.dump(value)))) == value


class Waiting(pydantic.BaseModel):
    hosts: list[DefinedLater]  # type: ignore[name-defined] # noqa: F821


def test_a_model_that_is_defined_later_has_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ValueCodec(Waiting)
    for _ in range(2):
        with pytest.raises(ValidationError, match="not fully defined"):
            codec.load({"hosts": []})
    monkeypatch.setitem(globals(), "DefinedLater", ipaddress.IPv6Interface)
    Waiting.model_rebuild()
    assert codec.load({"hosts": ["::1"]}) == Waiting(hosts=[ipaddress.IPv6Interface("::1")])
    with pytest.raises(SerializationError, match="more than 5,000 texts"):
        codec.load({"hosts": ["::1"] * 5_001})


def gather(*numbers: float) -> None:
    pass


def test_the_number_of_arguments_is_bounded_where_they_are_given_and_where_they_are_read() -> None:
    function = TaskFunction[None]("m:gather", gather)
    with pytest.raises(SerializationError, match="more than 10,000 arguments"):
        function.dump_arguments(serializer, (1.0,) * 10_001, {})
    data = serializer.dumps([[1] * 100_000, {}])
    assert cost(lambda: function.load_arguments(serializer, data)) < LIMIT


def reach(*hosts: list[ipaddress.IPv6Interface]) -> None:
    pass


def test_arguments_share_one_limit_where_they_are_given_and_where_they_are_read() -> None:
    function = TaskFunction[None]("m:reach", reach)
    hosts = [ipaddress.IPv6Interface("::1/64")] * 100
    function.dump_arguments(serializer, (hosts,) * 50, {})
    with pytest.raises(SerializationError, match="together"):
        function.dump_arguments(serializer, (hosts,) * 51, {})
    data = serializer.dumps([[["::1/64"] * 100] * 500, {}])
    with pytest.raises(SerializationError, match="together"):
        function.load_arguments(serializer, data)
    assert cost(lambda: function.load_arguments(serializer, data)) < LIMIT


def test_the_argument_that_alone_takes_too_long_to_read_is_named() -> None:
    function = TaskFunction[None]("m:reach", reach)
    data = serializer.dumps([[["::1/64"], ["::1/64"] * 5_001], {}])
    with pytest.raises(SerializationError, match=r"^reach\(\): parameter 'hosts': for its annot"):
        function.load_arguments(serializer, data)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([0] * 131_072, "more than 131,072 values"),
        ([{} for _ in range(22_000)], "more than 131,072 values"),
        ({uuid.UUID(int=number * MODULUS) for number in range(1, 1000)}, "share their hashes"),
        ({(number * MODULUS, 1) for number in range(-3, 5)}, None),
        (decimal.Decimal("1E+1001"), "1,000 digits"),
        (decimal.Decimal("1E-1001"), "1,000 digits"),
        (decimal.Decimal(nines(1001)), "1,000 digits"),
        ([0] * 131_060, None),
        ({float(2**number) for number in range(1000)}, None),
    ],
    ids=str,
)
def test_what_can_be_stored_can_be_read(value: Any, text: str | None) -> None:
    if text is None:
        assert serializer.loads(serializer.dumps(value)) == value
    else:
        with pytest.raises(SerializationError, match=text):
            serializer.dumps(value)


def test_the_number_of_values_can_be_set() -> None:
    value = [0] * 200_000
    larger = MsgpackSerializer(max_values=300_000)
    assert larger.loads(larger.dumps(value)) == value


_bodies = st.recursive(
    st.binary(max_size=12),
    lambda inner: st.one_of(
        st.builds(ext, st.integers(1, 10), inner),
        st.builds(many, st.integers(0, 1_000_000), inner),
        st.builds(b"".join, st.lists(inner, max_size=3)),
        st.builds(lambda item: b"\x91" + item, inner),
        st.builds(msgpack.packb, st.text(max_size=8) | st.integers(-(2**63), 2**64 - 1)),
    ).filter(lambda data: len(data) <= 1_048_576),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(_bodies)
def test_whatever_the_bytes_are_they_are_read_or_refused_in_a_short_time(data: bytes) -> None:
    assert cost(lambda: serializer.loads(data)) < LIMIT
