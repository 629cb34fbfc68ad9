"""NamedTuples travel by the names of their fields."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from sitq.errors import ValidationError
from sitq.payload._comparison import difference
from sitq.payload._stored_form import without_names
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer
from tests.unit.function_samples import Job, Pair, User

serializer = MsgpackSerializer()
ANN = User(name="Ann")


class Nested(NamedTuple):
    pair: Pair
    number: int = 0


class Holder(BaseModel):
    pairs: dict[str, list[Pair]]
    keyed: dict[Pair, int] = {}


class Reordered(NamedTuple):
    right: User | None = None
    middle: int = 5
    left: int = 0


class Shorter(NamedTuple):
    left: int


def taking(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__qualname__ = "f"
    f.__annotations__ = {"x": annotation}
    return TaskFunction("m:f", f)


@pytest.mark.parametrize(
    ("annotation", "value", "plain"),
    [
        (Shorter, Shorter(1), {"left": 1}),
        (Shorter | None, Shorter(1), {"left": 1}),
        (list[Shorter], [Shorter(1)], [{"left": 1}]),
        (tuple[Shorter, int], (Shorter(1), 2), ({"left": 1}, 2)),
        (dict[str, Shorter], {"a": Shorter(1)}, {"a": {"left": 1}}),
        (collections.deque[Shorter], collections.deque([Shorter(1)]), [{"left": 1}]),
        (
            Nested,
            Nested(Pair(1)),
            {"pair": {"left": 1, "right": None}, "number": 0},
        ),
        # A dict cannot be in these.
        (set[Shorter], {Shorter(1)}, {("sitq:", ("left", 1))}),
        (dict[Shorter, int], {Shorter(1): 2}, {("sitq:", ("left", 1)): 2}),
        # As a dict it would arrive as one.
        (Shorter | dict[str, int], Shorter(1), (1,)),
    ],
)
def test_a_named_tuple_is_stored_by_its_fields(annotation: Any, value: Any, plain: Any) -> None:
    function = taking(annotation)
    payload = function.dump_arguments(serializer, (value,), {})
    assert serializer.loads(payload) == [[plain], {}]
    (back,), _ = function.load_arguments(serializer, payload)
    assert difference(value, back) is None


def test_models_and_dataclasses_within_are_rebuilt() -> None:
    holder = Holder(pairs={"a": [Pair(1, ANN), Pair(2)]}, keyed={Pair(3): 1})
    for annotation, value in ((Holder, holder), (tuple[Job, Pair], (Job(ANN), Pair(1, ANN)))):
        function = taking(annotation)
        payload = function.dump_arguments(serializer, (value,), {})
        (back,), _ = function.load_arguments(serializer, payload)
        assert difference(value, back) is None


def test_a_deploy_may_reorder_and_add_the_fields_of_a_named_tuple() -> None:
    payload = taking(Pair).dump_arguments(serializer, (Pair(1, ANN),), {})
    (back,), _ = taking(Reordered).load_arguments(serializer, payload)
    assert back == Reordered(right=ANN, middle=5, left=1)


def test_a_field_that_a_named_tuple_does_not_know_is_refused_and_named() -> None:
    payload = taking(Pair).dump_arguments(serializer, (Pair(1),), {})
    with pytest.raises(ValidationError, match="unknown field 'right'"):
        taking(Shorter).load_arguments(serializer, payload)


def test_a_named_tuple_that_was_stored_by_position_is_read() -> None:
    payload = serializer.dumps([[(1, {"name": "Ann"})], {}])
    assert taking(Pair).load_arguments(serializer, payload) == ((Pair(1, ANN),), {})


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        (("sitq:",), ()),
        (("sitq:", 5), ("sitq:", 5)),
        (("sitq:", "RED", 1), 1),
        ({("sitq:", "RED", 1): [("sitq:", ("x", 1))]}, {1: [(1,)]}),
        ({"a": {"sitq:": "b", "b": None}}, {"a": {"b": None}}),
    ],
)
def test_names_are_taken_out_of_plain_values_of_any_shape(plain: object, value: object) -> None:
    assert without_names(plain) == value


@pytest.mark.parametrize("value", [{"sitq:": "x"}, ("sitq:", "x"), [{"a": {"sitq:": 1}}]])
def test_the_key_of_sitqs_own_is_refused_where_it_is_given(value: Any) -> None:
    with pytest.raises(ValidationError, match="is stored as"):
        TaskFunction[None]("m:take", take).dump_arguments(serializer, (value,), {})


def take(value: Any) -> None: ...


def take_users(value: list[User]) -> None: ...


def take_some(value: list[Any]) -> None: ...


def take_dicts(value: list[dict[str, Any]]) -> None: ...


@pytest.mark.parametrize("reader", [take, take_some, take_dicts])
def test_models_are_not_read_as_plain_values_with_names_of_sitqs_own(reader: Any) -> None:
    data = TaskFunction[None]("m:take", take_users).dump_arguments(serializer, ([ANN],), {})
    with pytest.raises(ValidationError, match="is stored as"):
        TaskFunction[None]("m:take", reader).load_arguments(serializer, data)
