"""What counts as the same value, and what as a loss."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import math
import zoneinfo
from typing import Any, NamedTuple

import pytest

from sitq.payload._comparison import difference, loss
from tests.unit.function_samples import Admin, Colour, Job, Loose, Name, User

UTC = dt.datetime(2024, 10, 27, 0, 30, tzinfo=dt.UTC)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Point(NamedTuple):
    x: int
    y: int


class Grumpy:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (math.nan, -math.nan),
        ([math.nan], [float("nan")]),
        ({math.nan, 1}, {float("nan"), 1}),
        ({float("nan"): 1}, {math.nan: 1}),
        (decimal.Decimal("sNaN"), decimal.Decimal("sNaN")),
        (User(name="x"), User(name="x")),
        (Job(User(name="x")), Job(User(name="x"))),
        ({Colour.RED}, {Colour.RED}),
        (Loose.model_validate({"b": 1}), Loose.model_validate({"b": 1})),
    ],
)
def test_values_of_the_same_type_and_content_are_the_same(one: Any, other: Any) -> None:
    assert difference(one, other) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.5),
        (2**53 + 1, 2.0**53),
        ([1], [True]),
        ({1}, {True}),
        ({1}, {1, 2}),
        ({1}, {2}),
        ({math.nan}, {1.5}),
        ({1: 1}, {True: 1}),
        ({1: 1}, {1: 2}),
        ({1: 1}, {1: 1, 2: 2}),
        ({1: 1, 2: 2}, {2: 2, 1: 1}),
        ((1,), [1]),
        ((1,), (1, 2)),
        ("a", Name.ANN),
        (math.nan, 1.0),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (UTC, UTC.astimezone(BERLIN)),
        (UTC.astimezone(BERLIN), UTC.astimezone(BERLIN).replace(fold=1)),
        (dt.time(1), dt.time(1, fold=1)),
        (User(name="x"), User(name="y")),
        (User(name="x"), Admin(name="x")),
        (Job(User(name="x")), Job(User(name="y"))),
        (Loose.model_validate({"b": 1}), Loose()),
        (collections.deque([1]), collections.deque([1], maxlen=1)),
        (Grumpy(), Grumpy()),
        (object(), object()),
    ],
)
def test_values_that_differ_in_type_or_content_are_not(one: Any, other: Any) -> None:
    assert difference(one, other) is not None
    assert difference(other, one) is not None


def test_an_int_may_arrive_as_its_equal_float_and_not_the_other_way_round() -> None:
    assert difference(1, 1.0) is None
    assert difference([1], [1.0]) is None
    assert difference(1.0, 1) is not None


@pytest.mark.parametrize(
    ("given", "arrived"),
    [
        (" x ", "x"),
        (1, 1.0),
        ("2024-01-01", dt.date(2024, 1, 1)),
        ([1, 2], [1]),
        ([1], {1}),
        (1, 1),
    ],
)
def test_what_a_validator_makes_of_a_value_is_no_loss(given: Any, arrived: Any) -> None:
    assert loss(given, arrived) is None


@pytest.mark.parametrize(
    ("given", "arrived"),
    [
        (Name.ANN, "ann"),
        ([1, (Name.ANN,)], [1, ("ann",)]),
        ({Name.ANN}, {"ann"}),
        ({"a": Name.ANN}, {"a": "ann"}),
        ({Name.ANN: 1}, {"ann": 1}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"name": "x"}, User(name="x")),
        (2**53 + 1, float(2**53)),
        (decimal.Decimal("0.1"), 0.1),
        ([1, 2], Point(1, 2)),
    ],
)
def test_a_class_or_keys_or_digits_dropped_are_a_loss(given: Any, arrived: Any) -> None:
    assert loss(given, arrived) is not None
