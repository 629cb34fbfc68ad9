"""For any annotation and any value of it: it comes back as what it was, or it is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sitq.errors import SerializationError, ValidationError
from sitq.payload._comparison import difference
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


class Item(BaseModel):
    name: str
    price: decimal.Decimal
    colour: Colour | None = None


@dataclasses.dataclass(frozen=True)
class Spot:
    x: int
    label: str | None


class Span(NamedTuple):
    start: int
    end: float


_integers = st.integers(-(2**63), 2**63 - 1)
_leaves: dict[Any, st.SearchStrategy[Any]] = {
    int: _integers,
    str: st.text(),
    float: st.floats(),
    bool: st.booleans(),
    bytes: st.binary(),
    None: st.none(),
    uuid.UUID: st.uuids(),
    dt.date: st.dates(),
    dt.datetime: st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
    dt.timedelta: st.timedeltas(),
    # pydantic takes finite ones only.
    decimal.Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    Colour: st.sampled_from(Colour),
    Span: st.builds(Span, _integers, st.floats(allow_nan=False)),
    Spot: st.builds(Spot, _integers, st.none() | st.text()),
    Item: st.builds(Item, name=st.text(), price=st.decimals(allow_nan=False, allow_infinity=False)),
}
_hashable: tuple[Any, ...] = (int, str, bool, bytes, uuid.UUID, dt.date, decimal.Decimal, Colour)
Typed = tuple[Any, st.SearchStrategy[Any]]


def _leaf(choices: Any) -> st.SearchStrategy[Typed]:
    return st.sampled_from(list(choices)).map(lambda kind: (kind, _leaves[kind]))


def _of(kind: Any, *items: Any) -> Any:
    return kind[items if len(items) > 1 else items[0]]


def _either(one: Any, other: Any) -> Any:
    return one if one is other else one | other


def _containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    key, two = _leaf(_hashable), st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda t: (_of(list, t[0]), st.lists(t[1], max_size=3))),
        inner.map(lambda t: (_of(tuple, t[0], ...), st.lists(t[1], max_size=3).map(tuple))),
        two.map(lambda p: (_of(tuple, p[0][0], p[1][0]), st.tuples(p[0][1], p[1][1]))),
        two.map(lambda p: (_either(p[0][0], p[1][0]), p[0][1] | p[1][1])),
        st.tuples(key, inner).map(
            lambda p: (
                _of(dict, p[0][0], p[1][0]),
                st.dictionaries(p[0][1], p[1][1], max_size=3),
            )
        ),
        key.map(lambda t: (_of(set, t[0]), st.sets(t[1], max_size=3))),
        key.map(lambda t: (_of(frozenset, t[0]), st.frozensets(t[1], max_size=3))),
    )


_typed = st.recursive(_leaf(_leaves), _containers, max_leaves=4)


def _task(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__annotations__ = {"x": annotation, "return": annotation}
    return TaskFunction("m:f", f)


@given(_typed, st.data())
@settings(max_examples=300, deadline=None)
def test_a_value_comes_back_as_what_it_was_or_is_refused(typed: Typed, data: st.DataObject) -> None:
    annotation, values = typed
    value = data.draw(values)
    function = _task(annotation)
    try:
        payload = function.dump_arguments(serializer, (value,), {})
    except (SerializationError, ValidationError):
        # Only a union has members that cannot be told apart.
        assert "|" in str(annotation) or "Union" in str(annotation)
        return
    (back,), _ = function.load_arguments(serializer, payload)
    assert difference(value, back) is None
    returned = function.load_result(serializer, function.dump_result(serializer, value))
    assert difference(value, returned) is None


@given(_typed, _typed, st.data())
@settings(max_examples=200, deadline=None)
def test_a_value_of_another_annotation_comes_back_as_what_it_was_or_is_refused(
    typed: Typed, other: Typed, data: st.DataObject
) -> None:
    value = data.draw(other[1])
    function = _task(typed[0])
    try:
        payload = function.dump_arguments(serializer, (value,), {})
    except (SerializationError, ValidationError):
        return
    (back,), _ = function.load_arguments(serializer, payload)
    if difference(value, back) is not None:  # an int for a float is all that may change
        assert "float" in str(typed[0])
        assert value == back


@given(_typed, st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_stored_bytes_are_arguments_or_one_of_two_errors(typed: Typed, data: bytes) -> None:
    function = _task(typed[0])
    for payload in (data, b"\x92\x91" + data + b"\x80", b"\x92\x90\x81\xa1x" + data):
        try:
            function.load_arguments(serializer, payload)
        except (SerializationError, ValidationError):
            continue
