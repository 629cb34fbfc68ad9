"""What was stored arrives as what it was, or is refused, whatever a deploy has changed since."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

from sitq.errors import ValidationError
from sitq.payload._comparison import difference
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()

Make = Callable[[Any], Any]


def taking(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__qualname__ = "f"
    f.__annotations__ = {"x": annotation, "return": annotation}
    return TaskFunction("m:f", f)


def sent(annotation: Any, value: Any, today: Any) -> Any:
    """Return what a value of an annotation arrives as where the annotation is that of today."""
    payload = taking(annotation).dump_arguments(serializer, (value,), {})
    (back,), _ = taking(today).load_arguments(serializer, payload)
    result = taking(annotation).dump_result(serializer, value)
    assert difference(back, taking(today).load_result(serializer, result)) is None
    return back


def model_of(kind: Any) -> Any:
    return pydantic.create_model("Holder", x=(kind, ...))


def strict_model_of(kind: Any) -> Any:
    return pydantic.create_model("Holder", __config__=ConfigDict(strict=True), x=(kind, ...))


def dataclass_of(kind: Any) -> Any:
    return dataclasses.make_dataclass("Holder", [("x", kind)])


def typed_dict_of(kind: Any) -> Any:
    make: Any = TypedDict
    return make("Holder", {"x": kind})


def nested_model_of(kind: Any) -> Any:
    holder: Any = model_of(kind)
    return pydantic.create_model("Outer", x=(kind, ...), inner=(list[holder], []))


HOLDERS = [model_of, strict_model_of, dataclass_of, typed_dict_of, nested_model_of]


@pytest.mark.parametrize("holder_of", HOLDERS)
@pytest.mark.parametrize(
    ("before", "value", "today"),
    [
        (int, 1, bool),
        (bool, True, int),
        (int, 5, datetime),
        (int, 5, timedelta),
        (float, 1.0, int),
        (str, "5", int),
        (str, "yes", bool),
        (str, "1.5", Decimal),
        (str, "a", bytes),
        (str, "a", Path),
        (str, "00000000000000000000000000000000", UUID),
        (bytes, b"a", str),
        (date, date(2020, 1, 1), datetime),
        (datetime, datetime(2020, 1, 1, tzinfo=UTC), date),
        (Decimal, Decimal("0.1"), float),
        (int, 2**53 + 1, float),
        (list[int], [1, 1], set[int]),
        (set[int], {1, 2}, list[int]),
        (tuple[int, int], (1, 2), list[int]),
        (dict[str, int], {"1": 1}, dict[int, int]),
        (int, 1, Literal[True]),
        (int | None, 1, bool | None),
    ],
)
def test_a_field_takes_no_value_that_was_stored_as_one_of_another_type(
    before: Any, value: Any, today: Any, holder_of: Make
) -> None:
    holder = holder_of(before)
    with pytest.raises(ValidationError, match=r"^f\(\): parameter 'x': at x"):
        sent(holder, holder(x=value), holder_of(today))


@pytest.mark.parametrize("holder_of", HOLDERS)
def test_a_field_of_float_takes_an_int_that_is_not_rounded(holder_of: Make) -> None:
    holder = holder_of(int)
    back = sent(holder, holder(x=3), holder_of(float))
    assert (back["x"] if isinstance(back, dict) else back.x) == 3.0


@pytest.mark.parametrize("value", [Decimal("0.1"), 2**53 + 1])
def test_a_parameter_of_float_takes_nothing_that_is_rounded(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"^f\(\): parameter 'x'"):
        sent(type(value), value, float)


def test_fields_may_have_the_names_of_parts_of_schemas() -> None:
    class Inner(BaseModel):
        type: str

    class Event(BaseModel):
        type: Literal["type"] = "type"
        metadata: Inner
        config: Inner | None = None
        default: list[Inner] = []
        fields: dict[str, int] = {}
        choices: Inner | None = None

    class Keeping(Event):
        model_config = ConfigDict(extra="allow")

    class Other(BaseModel):
        type: Literal["other"]

    union = Annotated[Event | Other, Field(discriminator="type")]
    value = Event(metadata=Inner(type="a"), default=[Inner(type="b")], choices=Inner(type="c"))
    kept = Keeping.model_validate({**value.model_dump(), "more": 1})
    for annotation, each in ((Event, value), (union, value), (Keeping, kept)):
        assert sent(annotation, each, annotation) == each
    plain = {"type": "type", "metadata": {"type": "a", "new": 1}}
    for annotation in (Event, union, Keeping):
        with pytest.raises(ValidationError, match="metadata: unknown field 'new'"):
            taking(annotation).load_arguments(serializer, serializer.dumps([[plain], {}]))


class Colour(enum.Enum):
    RED = enum.auto()
    BLUE = enum.auto()


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Painted(BaseModel):
    colour: Colour
    known: dict[Colour, list[Colour]] = {}
    all: frozenset[Colour] = frozenset()


def shapes_of(kind: Any, member: Any) -> list[tuple[Any, Any]]:
    holder = model_of(kind)
    return [
        (kind, member),
        (kind | None, member),
        (list[kind], [member]),
        (dict[kind, int], {member: 1}),
        (set[kind], {member}),
        (frozenset[tuple[kind, int]], frozenset({(member, 1)})),
        (holder, holder(x=member)),
        (RootModel[list[kind]], RootModel[list[kind]]([member])),
    ]


def test_members_of_enums_come_back() -> None:
    painted = Painted(
        colour=Colour.RED, known={Colour.RED: [Colour.BLUE]}, all=frozenset({Colour.BLUE})
    )
    assert sent(Painted, painted, Painted) == painted
    members = [*Colour, *Access, Access.READ | Access.WRITE, Access(0)]
    for member in members:
        for annotation, value in shapes_of(type(member), member):
            assert difference(value, sent(annotation, value, annotation)) is None


def test_a_member_whose_number_has_moved_to_another_is_refused() -> None:
    make: Any = enum.Enum
    inserted, removed = make("Colour", ["RED", "GREEN", "BLUE"]), make("Colour", ["BLUE"])
    make = enum.Flag
    more = make("Access", ["EXECUTE", "READ", "WRITE"])
    moved = [
        (Colour.BLUE, inserted, inserted["RED"]),
        (Colour.RED, removed, removed["BLUE"]),
        (Access.READ | Access.WRITE, more, more["READ"]),
    ]
    for member, today, other in moved:
        shapes = zip(shapes_of(type(member), member), shapes_of(today, other), strict=True)
        for (annotation, value), (changed, _) in shapes:
            with pytest.raises(ValidationError, match="a member that .* does not have by this"):
                sent(annotation, value, changed)
    assert sent(Colour, Colour.RED, inserted) is inserted["RED"]


def test_a_member_is_found_by_an_alias_and_a_text_by_its_value() -> None:
    class Renamed(enum.Enum):
        CRIMSON = 1
        RED = CRIMSON

    class Level(enum.StrEnum):
        LOW = "low"

    class Relabelled(enum.StrEnum):
        LITTLE = "low"

    assert sent(Colour, Colour.RED, Renamed) is Renamed.CRIMSON
    assert sent(Level, Level.LOW, Relabelled) is Relabelled.LITTLE


def test_a_member_that_was_stored_by_its_value_is_read() -> None:
    payload = serializer.dumps([[2], {}])
    assert taking(Colour).load_arguments(serializer, payload) == ((Colour.BLUE,), {})


def test_a_literal_may_be_a_member_of_an_enum() -> None:
    class Kind(enum.StrEnum):
        A = "a"

    for member in (Kind.A, Colour.BLUE):
        literal: Any = Literal[member]
        for annotation, value in shapes_of(literal, member):
            assert difference(value, sent(annotation, value, annotation)) is None


class Patch(BaseModel):
    name: str = ""
    size: int | None = None
    inner: Patch | None = None


class Migrating(Patch):
    model_config = ConfigDict(extra="allow")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _only_names(cls, data: Any) -> Any:
        assert not isinstance(data, dict) or "sitq:" not in data
        return data


@pytest.mark.parametrize("kind", [Patch, Migrating])
def test_a_field_that_was_not_set_is_not_set_where_it_arrives(kind: type[Patch]) -> None:
    patch = kind(size=None, inner=Patch(name="a"))
    for annotation, value in ((kind, patch), (list[kind], [patch]), (kind | None, patch)):  # type: ignore[valid-type]
        back = sent(annotation, value, annotation)
        back = back[0] if isinstance(back, list) else back
        assert back == patch
        assert back.model_dump(exclude_unset=True) == {"size": None, "inner": {"name": "a"}}


def test_a_default_that_was_not_set_keeps_its_value_over_a_deploy() -> None:
    class Before(BaseModel):
        name: str
        currency: str = "EUR"

    class Today(BaseModel):
        currency: str = "USD"
        more: int = 0
        name: str

    back = sent(Before, Before(name="a"), Today)
    assert (back.currency, back.model_fields_set) == ("EUR", {"name"})


@pytest.mark.parametrize("today", [Any, dict, dict[str, Any], tuple, tuple[str, str, int], object])
def test_what_was_stored_by_names_is_taken_for_no_plain_value(today: Any) -> None:
    """A model could be read as a dict with a strange key, and a member as a tuple."""
    for before, value in ((Patch, Patch(name="a")), (Colour, Colour.RED)):
        with pytest.raises(ValidationError, match=r"^f\(\): parameter 'x'"):
            sent(before, value, today)


class Point(NamedTuple):
    x: int
    y: int


class Turned(NamedTuple):
    y: int
    x: int


def test_the_fields_of_a_named_tuple_may_be_reordered_where_it_is_a_key() -> None:
    assert sent(set[Point], {Point(1, 2)}, set[Turned]) == {Turned(x=1, y=2)}
    assert sent(dict[Point, int], {Point(1, 2): 3}, dict[Turned, int]) == {Turned(x=1, y=2): 3}
    assert sent(frozenset[Point], frozenset({Point(1, 2)}), frozenset[Turned]) == {Turned(2, 1)}


def test_what_a_serializer_has_written_in_another_form_is_read() -> None:
    class Written(BaseModel):
        at: Annotated[datetime, pydantic.PlainSerializer(lambda at: at.isoformat())]
        price: Decimal
        raw: pydantic.Json[dict[str, int]] = Field(default="{}", validate_default=True)

        @pydantic.field_serializer("price")
        def _text(self, price: Decimal) -> str:
            return str(price)

    value = Written(at=datetime(2020, 1, 1, tzinfo=UTC), price=Decimal("1.5"), raw='{"a": 1}')  # type: ignore[arg-type]
    assert sent(Written, value, Written) == value
