"""What the default serializer carries, and what it refuses."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import math
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from pydantic import TypeAdapter

from sitq.errors import SerializationError, ValidationError
from sitq.payload.serialization import MsgpackSerializer
from sitq.protocols import Serializer

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
serializer = MsgpackSerializer()
_: Serializer = serializer


def through(value: Any) -> Any:
    return serializer.loads(serializer.dumps(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**64 - 1,
        1.5,
        math.inf,
        "",
        "text \N{SNOWMAN}\x00",
        b"\x00\xff",
        [],
        [1, [2, [3]]],
        (),
        (1, (2, "x")),
        {},
        {"a": [1], 2: b"", None: (), (1, "k"): 1, 1.5: 2},
        set(),
        {1, "a", (2, 3)},
        frozenset({frozenset({1}), b"x"}),
        uuid.UUID(int=2**127 + 1),
        decimal.Decimal("1.10"),
        decimal.Decimal("-Infinity"),
        decimal.Decimal("-9.99E+1000"),
        decimal.Decimal("1E-1000"),
        decimal.Decimal("9" * 1000),
        dt.date.min,
        dt.date.max,
        dt.timedelta(days=-1, microseconds=1),
        dt.timedelta.max,
        dt.time(1, 2, 3, 4),
        dt.time(1, 2, fold=1, tzinfo=dt.UTC),
        dt.time(1, tzinfo=BERLIN),
        dt.datetime(1, 1, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999),
        pathlib.Path("a/b"),
        pathlib.Path("/"),
        pathlib.PurePosixPath("x"),
        pathlib.PureWindowsPath("c:\\x"),
        pathlib.Path("not-utf8-\udcff"),
        "x" * 70_000,
        list(range(1000)),
        {str(n): (n,) for n in range(100)},
        -1,
        [-1] * 5,
    ],
    # A set shows its items in another order in each process.
    ids=lambda value: (
        type(value).__name__
        + ("" if isinstance(value, (set, frozenset)) else f"-{str(value)[:12]!r}")
    ),
)
def test_plain_values_come_back_as_what_they_were(value: Any) -> None:
    back = through(value)
    assert back == value
    assert type(back) is type(value)


def test_nested_values_keep_their_types() -> None:
    back = through([(1, True), {"k": {1.0}}, frozenset({None})])
    assert [type(item) for item in back] == [tuple, dict, frozenset]
    assert type(back[0][1]) is bool
    assert type(next(iter(back[1]["k"]))) is float


def test_nan_and_the_sign_of_zero_come_back() -> None:
    assert math.isnan(through(math.nan))
    assert math.copysign(1, through(-0.0)) == -1
    assert through(decimal.Decimal("sNaN7")).as_tuple() == decimal.Decimal("sNaN7").as_tuple()
    assert str(through(decimal.Decimal("-0.00"))) == "-0.00"


@pytest.mark.parametrize(
    "moment",
    [
        dt.datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=BERLIN),
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(2024, 3, 31, 2, 30, fold=0, tzinfo=BERLIN),  # skipped by the clocks
        dt.datetime(2024, 3, 31, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(1880, 1, 1, tzinfo=BERLIN),  # local mean time, odd seconds
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 12, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=-9.5))),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Zulu")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=-1))),
    ],
    ids=str,
)
def test_a_moment_keeps_wall_time_offset_fold_and_zone(moment: dt.datetime) -> None:
    back = through(moment)
    assert back == moment
    assert back.replace(tzinfo=None) == moment.replace(tzinfo=None)
    assert back.fold == moment.fold
    assert back.utcoffset() == moment.utcoffset()
    assert back.tzname() == moment.tzname()
    assert back.tzinfo == moment.tzinfo


def test_the_moments_that_pydantic_reads_come_back_equal() -> None:
    moment = TypeAdapter(dt.datetime).validate_python("2024-01-01T00:00:00+02:00")
    assert through(moment) == moment
    assert through(moment).utcoffset() == dt.timedelta(hours=2)


@pytest.mark.parametrize(
    "value", [dt.datetime(2024, 7, 1, tzinfo=BERLIN), dt.time(1, tzinfo=BERLIN)]
)
def test_a_zone_that_is_unknown_here_is_an_error_that_names_tzdata(value: object) -> None:
    data = serializer.dumps(value).replace(b"Europe/Berlin", b"Europe/Nowher")
    with pytest.raises(SerializationError, match="install the package tzdata"):
        serializer.loads(data)


def test_a_zone_that_is_read_otherwise_here_becomes_its_offset() -> None:
    moment = dt.datetime(2024, 7, 1, tzinfo=BERLIN)
    data = serializer.dumps(moment).replace(b"Europe/Berlin", b"Europe/Moscow")
    assert serializer.loads(data) == moment


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class OddZone(dt.tzinfo):
    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta()

    def tzname(self, _: dt.datetime | None) -> str:
        return "odd"


class TextSubclass(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**64, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        ((2**64,), "64 bits"),
        ("\ud800", "surrogates"),
        ({"\ud800"}, "surrogates"),
        (object(), "type object "),
        ([object()], "type object "),
        ({"a": ({1: object()},)}, "type object "),
        (Colour.RED, "type Colour "),
        (Number.ONE, "type Number "),
        (TextSubclass(), "type TextSubclass "),
        (collections.OrderedDict(), "type OrderedDict "),
        (bytearray(), "pass bytes"),
        ([memoryview(b"")], "pass bytes"),
        (1j, "type complex "),
        (range(3), "type range "),
        (iter(()), "type tuple_iterator "),
        (msgpack.ExtType(1, b""), "type ExtType "),
        (dt.datetime(2024, 1, 1, tzinfo=OddZone()), "tzinfo is an OddZone"),
        ((b"x",) * 1_000, "over the limit of 500 bytes"),
        ("x" * 1000, "1003 bytes long, over the limit of 500 bytes"),
        (pathlib.Path("\ud800"), "surrogates"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_named(value: Any, text: str) -> None:
    with pytest.raises(SerializationError, match=text):
        MsgpackSerializer(max_bytes=500).dumps(value)


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: (v,), lambda v: {1: v}, lambda v: frozenset({v})],
    ids=["list", "tuple", "dict", "frozenset"],
)
def test_values_may_lie_64_levels_deep_and_no_deeper(wrap: Callable[[Any], Any]) -> None:
    assert through(nested(64, wrap)) == nested(64, wrap)
    with pytest.raises(SerializationError, match="64 levels"):
        serializer.dumps(nested(65, wrap))


def test_the_least_depth_holds_no_lists_in_lists() -> None:
    shallow = MsgpackSerializer(max_depth=1)
    assert shallow.loads(shallow.dumps([1])) == [1]
    with pytest.raises(SerializationError, match="1 levels"):
        shallow.dumps([[1]])


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="holds itself"):
        serializer.dumps(loop)


def test_a_value_that_multiplies_itself_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(SerializationError, match="over the limit"):
        MsgpackSerializer(max_bytes=1000).dumps(nested(60, lambda value: [value, value]))


def test_a_payload_may_be_just_as_long_as_the_limit() -> None:
    small = MsgpackSerializer(max_bytes=10)
    assert small.loads(small.dumps("x" * 9)) == "x" * 9
    with pytest.raises(SerializationError, match="11 bytes long, over the limit of 10 bytes"):
        small.dumps("x" * 10)
    with pytest.raises(SerializationError, match="11 bytes long, over the limit of 10 bytes"):
        small.loads(serializer.dumps("x" * 10))


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_depth": 0}, {"max_depth": 257}])
def test_a_limit_out_of_its_range_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(limits))):
        MsgpackSerializer(**limits)  # type: ignore[arg-type]


def test_no_error_shows_a_value() -> None:
    with pytest.raises(SerializationError) as caught:
        serializer.dumps("secret\ud800")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_value_that_msgpack_has_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("sitq.payload.serialization.pack", pack)
    with pytest.raises(SerializationError, match="too large"):
        serializer.dumps(1)


def test_a_value_that_changes_while_it_is_written_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MsgpackSerializer, "_inspect", lambda self, value: None)
    with pytest.raises(SerializationError, match="type complex "):
        serializer.dumps([[1j]])
