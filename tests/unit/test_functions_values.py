"""Which values of which annotations travel, and which are refused at the door."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import fractions
import ipaddress
import math
import pathlib
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from sitq.errors import SerializationError, SitqError, ValidationError
from sitq.ids import TaskId, new_task_id
from sitq.payload._comparison import difference
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer
from tests.unit.function_samples import (
    Admin,
    Box,
    Cat,
    Celsius,
    Checked,
    Colour,
    Dog,
    Job,
    Key,
    Level,
    Loose,
    Name,
    Node,
    Options,
    Pair,
    Pixel,
    Point,
    Rights,
    Secretive,
    Strict,
    T,
    User,
)

serializer = MsgpackSerializer()


def taking(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__qualname__ = "f"
    f.__annotations__ = {"x": annotation, "return": annotation}
    return TaskFunction("m:f", f)


def through(annotation: Any, value: Any) -> Any:
    function = taking(annotation)
    args, kwargs = function.load_arguments(
        serializer, function.dump_arguments(serializer, (value,), {})
    )
    assert kwargs == {}
    returned = function.load_result(serializer, function.dump_result(serializer, value))
    assert difference(args[0], returned) is None
    return args[0]


MOMENT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
ANN = User(name="Ann", born=dt.date(2000, 1, 1), tags={"a", "b"}, colour=Colour.ODD)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 1),
        (str, "x"),
        (bool, True),
        (float, 1.5),
        (float, math.nan),
        (bytes, b"\xff"),
        (None, None),
        (dt.datetime, MOMENT),
        (dt.date, MOMENT.date()),
        (dt.time, dt.time(1)),
        (dt.timedelta, dt.timedelta(1)),
        (uuid.UUID, uuid.uuid4()),
        (decimal.Decimal, decimal.Decimal("1.10")),
        (decimal.Decimal, decimal.Decimal("NaN")),
        (pathlib.Path, pathlib.Path("a")),
        (pathlib.PurePosixPath, pathlib.PurePosixPath("a")),
        (int | None, None),
        (int | str, "1"),
        (int | float, 1),
        (str | uuid.UUID, uuid.uuid4()),
        (str | dt.date, dt.date(2000, 1, 1)),
        (str | bytes | None, b"x"),
        (list[int], [1, 2]),
        (list[float], [math.nan]),
        (list[int | None], [1, None]),
        (dict[str, int], {"a": 1}),
        (dict[str, list[int]], {"a": [1]}),
        (dict[int, User], {1: ANN}),
        (dict[Colour, int], {Colour.RED: 1}),
        (set[int], {1}),
        (set[Colour], {Colour.RED, Colour.ODD}),
        (frozenset[str], frozenset("ab")),
        (tuple[int, ...], (1, 2)),
        (tuple[int, str], (1, "x")),
        (tuple[()], ()),
        (list, [1, ("x",)]),
        (dict, {1: {2}}),
        (set, {1}),
        (tuple, (1, "x")),
        (list[Any], [1, (2,)]),
        (Any, {"a": (1,)}),
        (object, {1}),
        (T, [1]),
        (Sequence[int], [1]),
        (Sequence[int], (1,)),
        (Sequence[User], (ANN,)),
        (Mapping[str, int], {"a": 1}),
        (Mapping[str, User], {"a": ANN}),
        (Iterable[int], [1]),
        (Iterable[int], (1,)),
        (Iterable[User] | None, [ANN]),
        (Collection[int], {1}),
        (Iterable, [1]),
        (collections.deque[int], collections.deque([1, 2])),
        (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2)),
        (collections.defaultdict[str, int], collections.defaultdict(int, a=1)),
        (Colour, Colour.RED),
        (Colour | None, Colour.ODD),
        (Name, Name.ANN),
        (Level, Level.LOW),
        (Rights, Rights.READ | Rights.WRITE),
        (Literal["a", 1], "a"),
        (User, ANN),
        (User | None, None),
        (list[User], [ANN, ANN]),
        (User | int, ANN),
        (Strict, Strict(theNumber=1, at=MOMENT, inner=ANN)),
        (list[Strict], [Strict(theNumber=1)]),
        (Loose, Loose.model_validate({"a": 1, "b": [2]})),
        (Box[User], Box[User](content=ANN)),
        (Node, Node(children=[Node(), Node(children=[Node()])])),
        (Annotated[Cat | Dog, Field(discriminator="kind")], Dog()),
        (Cat | Dog, Dog()),
        (Job, Job(ANN, dt.timedelta(1))),
        (Key, Key(1)),
        (Checked, Checked(enn=1)),  # type: ignore[call-arg]
        (Pair, Pair(1, ANN)),
        (Options, {"size": 1, "user": ANN}),
        (Options, {}),
        (Celsius, Celsius(1.5)),
        (TaskId[int], TaskId[int]("01a2221a-6a91-7037-ab9c-becd89c169be")),
        (ipaddress.IPv4Address, ipaddress.ip_address("127.0.0.1")),
        (ipaddress.IPv6Network, ipaddress.ip_network("::/64")),
        (pydantic.AnyUrl, pydantic.AnyUrl("https://example.org/")),
        (pydantic.SecretStr, pydantic.SecretStr("x")),
        (re.Pattern[str], re.compile("a+")),
        (fractions.Fraction, fractions.Fraction(1, 3)),
        (complex, 1 + 2j),
        (Annotated[int, Field(gt=0)], 1),
        (Annotated[str, AfterValidator(str.strip)], "x"),
        (Annotated[int, ["a note that cannot be hashed"]], 1),
    ],
    ids=lambda item: item if isinstance(item, str) else type(item).__name__,
)
def test_a_value_comes_back_as_what_it_was(annotation: Any, value: Any) -> None:
    assert difference(value, through(annotation, value)) is None


def test_an_int_for_a_float_becomes_the_float_that_was_asked_for() -> None:
    assert type(through(float, 1)) is float
    assert through(list[float], [1, 2.5]) == [1.0, 2.5]


def test_a_validator_sees_the_value_before_it_is_stored() -> None:
    assert through(Annotated[str, AfterValidator(str.strip)], " x ") == "x"
    assert through(
        Annotated[
            dt.date, BeforeValidator(lambda v: v if isinstance(v, dt.date) else MOMENT.date())
        ],
        "today",
    ) == dt.date(2024, 1, 1)


def _refuse(_: object) -> None:
    raise ValueError("secret value")


def _crash(_: object) -> None:
    raise KeyError("secret value")


def _endless(value: object) -> object:
    return _endless(value)


class Unfinished(BaseModel):
    part: Missing  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Unfinished, {"part": 1}, r"cannot be used|not fully defined"),
        (int, "one", r"valid integer \(got str\)"),
        (int, True, r"got bool"),
        (int, 1.0, r"got float"),
        (str, b"x", r"got bytes"),
        (bool, 1, r"got int"),
        (bytes, bytearray(), r"got bytearray"),
        (float, True, r"got bool"),
        (float, "1.5", r"got str"),
        (None, 0, r"got int"),
        (dt.date, MOMENT, r"got datetime"),
        (dt.datetime, "2024-01-01", r"got str"),
        (uuid.UUID, "28293f98-5628-4213-8674-50b62ee3208e", r"got str"),
        (list[int], (1,), r"got tuple"),
        (list[int], [1, "2"], r"at 1: .*got str"),
        (dict[str, int], {"secret": "x"}, r"^f\(\): parameter 'x': Input .*got str"),
        (Colour, "red", r"got str"),
        (User, {"name": "x"}, r"a dict would arrive as a User"),
        (Job, {"user": ANN}, r"got dict"),
        (list[User], [{"name": "x"}], r"a dict would arrive as a User"),
        (Pair, {"left": "secret"}, r"."),
        (Options, {"user": {"name": "x"}}, r"at user: a dict would arrive as a User"),
        (Options, {"size": "1"}, r"at size: .*got str"),
        (Iterable[int], iter([1]), r"got list_iterator"),
        (Iterable[str], "secret", r"got str"),
        (Literal["a"], "secret", r"got str"),
        (Annotated[int, Field(gt=0)], 0, r"greater than 0"),
        (Annotated[int, AfterValidator(_refuse)], 1, r"its validator refused it \(got int\)"),
        (Annotated[int, AfterValidator(_crash)], 1, r"its validator raised KeyError"),
        (list[int], ["secret"] * 9, r"and 6 more"),
        (Iterator[int], iter([1]), r"produced while they are read"),
        (list[Iterable[int]], [[1]], r"annotate a list"),
        (Callable[[], int], len, r"."),
        (re.Match[str], 1, r"annotation .* cannot be used"),
        (SitqError, 1, r"annotation SitqError cannot be used"),
    ],
    ids=lambda item: item if isinstance(item, str) else type(item).__name__,
)
def test_what_is_not_as_annotated_is_refused(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises((ValidationError, SerializationError), match=text) as caught:
        taking(annotation).dump_arguments(serializer, (value,), {})
    assert str(caught.value).startswith("f(): parameter 'x': ")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class Opaque:
    """A type that no serializer knows."""


class Broken(BaseModel):
    n: int = 0

    @pydantic.model_serializer
    def _dump(self) -> dict[str, int]:
        raise RuntimeError("secret value")


class OneWay(BaseModel):
    n: int = 0

    @pydantic.field_serializer("n")
    def _dump(self, _: int) -> str:
        return "secret"


_double = Annotated[int, AfterValidator(lambda value: value * 2)]
_loop: list[Any] = []
_loop.append(_loop)
_mutated = User(name="x")
_mutated.__dict__["name"] = 5
_deep = Node()
for _ in range(200):
    _deep = Node(children=[_deep])


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (User, Admin(name="x"), "an Admin would arrive as a User"),
        (list[User], [ANN, Admin(name="x")], "at 1: an Admin would arrive as a User"),
        (Point | Pixel, Pixel(x=1), "a Pixel would arrive as a Point"),
        (Point | dict[str, int], Point(x=1), "a Point would arrive as a dict"),
        (Colour | str, Colour.RED, "a Colour would arrive as a str"),
        (str, Name.ANN, "a Name would arrive as a str"),
        (list[str], [Name.ANN], "a Name would arrive as a str"),
        (dict[str, int], {Name.ANN: 1}, "a Name would arrive as a str"),
        (set[str], {Name.ANN}, "a Name would arrive as a str"),
        (tuple[str, User], (Name.ANN, ANN), "at 0: a Name would arrive as a str"),
        (int, Level.LOW, "a Level would arrive as an int"),
        (float, 2**53 + 1, "rounded"),
        (Options, {"size": 1, "more": 2}, "keys that the annotation does not know"),
        (Mapping[str, int], collections.OrderedDict(a=1), "an OrderedDict would arrive as a dict"),
        (
            Secretive,
            Secretive(key=pydantic.SecretStr("x"), hidden=2),
            "at hidden: an int would arrive changed",
        ),
        (_double, 1, "an int would arrive changed"),
        (re.Pattern[str], re.compile("a", re.IGNORECASE), "a Pattern would arrive changed"),
        (collections.deque[int], collections.deque([1], maxlen=3), "a deque would arrive changed"),
        (
            collections.defaultdict[str, int],
            collections.defaultdict(lambda: 1),
            "a defaultdict would arrive changed",
        ),
        (Any, ANN, "type User cannot be stored; annotate"),
        (dict[str, Any], {"a": ANN}, "type User cannot be stored; annotate"),
        (list[Any] | User, [Opaque()], "type Opaque cannot be stored.*; an Opaque at 0"),
        (Loose, Loose.model_validate({"b": ANN}), "a User would arrive as a dict"),
        (Loose, Loose.model_validate({"b": Opaque()}), "an Opaque at b"),
        (Box[Any], Box[Any](content=Colour.RED), "at content: a Colour would arrive as a str"),
        (set[Key], {Key(1)}, "a set cannot be turned into plain values"),
        (Broken, Broken(), "a Broken cannot be turned into plain values"),
        (OneWay, OneWay(), "a OneWay could not be read back: at n: .*got str"),
        (User, _mutated, "at name: a User cannot be turned into plain values"),
        (Any, _loop, "holds itself"),
        (int, 2**70, "64 bits"),
        (str, "secret\ud800", "surrogates"),
    ],
    ids=lambda item: item if isinstance(item, str) else type(item).__name__,
)
def test_what_would_not_come_back_is_refused(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises((SerializationError, ValidationError), match=text) as caught:
        taking(annotation).dump_arguments(serializer, (value,), {})
    assert str(caught.value).startswith("f(): parameter 'x': ")
    assert "secret" not in str(caught.value)
    with pytest.raises(type(caught.value), match=text):
        taking(annotation).dump_result(serializer, value)


@pytest.mark.usefixtures("paused_collector")
@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Annotated[int, AfterValidator(_endless)], 1), (Node, _deep)],
    ids=["a validator", "a model"],
)
def test_what_needs_more_recursion_than_python_has_is_refused(annotation: Any, value: Any) -> None:
    function = taking(annotation)
    for dump, given, what in (
        (function.dump_arguments, ((value,), {}), "parameter 'x'"),
        (function.dump_result, (value,), "the return value"),
    ):
        with pytest.raises(SerializationError, match="nested") as caught:
            dump(serializer, *given)
        assert str(caught.value).startswith(f"f(): {what}: ")
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_an_int_is_read_as_a_float_and_what_fits_no_more_is_refused() -> None:
    old = taking(int).dump_arguments(serializer, (1,), {})
    assert taking(float).load_arguments(serializer, old) == ((1.0,), {})
    with pytest.raises(ValidationError, match=r"f\(\): parameter 'x': .*got int"):
        taking(User).load_arguments(serializer, old)
    with pytest.raises(ValidationError, match=r"f\(\): the return value: .*got int"):
        taking(User).load_result(serializer, serializer.dumps(1))


@pytest.mark.parametrize(
    ("annotation", "stored"),
    [
        (int, "5"),
        (int, True),
        (int, 1.0),
        (bool, 1),
        (float, "1.5"),
        (float, False),
        (str, b"x"),
        (bytes, "x"),
        (dt.datetime, 5),
        (dt.datetime, "2024-01-01T00:00:00Z"),
        (dt.date, MOMENT),
        (dt.timedelta, 1.5),
        (uuid.UUID, "0" * 32),
        (decimal.Decimal, 1),
        (pathlib.Path, "a"),
        (int | None, "5"),
        (int | bool, "1"),
        (list[int], ["5"]),
        (list[int], (5,)),
        (dict[str, int], {"a": True}),
        (tuple[int, str], (1, 2)),
        (set[int] | None, {"5"}),
        (list[dict[str, list[int]]], [{"a": ["5"]}]),
    ],
)
def test_a_stored_value_of_one_plain_type_is_not_taken_for_one_of_another(
    annotation: Any, stored: Any
) -> None:
    with pytest.raises(ValidationError, match=r"f\(\): parameter 'x': .*\(got"):
        taking(annotation).load_arguments(serializer, serializer.dumps([[stored], {}]))


def test_a_task_id_travels_as_its_text() -> None:
    """What `enqueue` returned can be an argument, also where it is a plain text to the function."""
    task_id = new_task_id()

    def text(value: str) -> None: ...
    def typed(value: TaskId[int]) -> None: ...
    def plain(value): ...  # type: ignore[no-untyped-def]

    serializer = MsgpackSerializer()
    for function, kind in ((text, str), (typed, TaskId), (plain, str)):
        codec: TaskFunction[object] = TaskFunction("tests:function", function)
        (back,), _ = codec.load_arguments(
            serializer, codec.dump_arguments(serializer, (task_id,), {})
        )
        assert (back, type(back)) == (task_id, kind)


@dataclasses.dataclass
class _Spot:
    x: float
    y: list[float]


def test_an_int_may_stand_for_a_float_also_within() -> None:
    """Type checkers allow it, so a dataclass built with ints travels; a rounded one does not."""

    def function(spot: _Spot) -> None: ...

    serializer = MsgpackSerializer()
    codec: TaskFunction[object] = TaskFunction("tests:function", function)
    payload = codec.dump_arguments(serializer, (_Spot(1, [2, 3.5]),), {})
    (back,), _ = codec.load_arguments(serializer, payload)
    assert back == _Spot(1.0, [2.0, 3.5])
    assert type(back.x) is float
    with pytest.raises(SerializationError, match="rounded"):
        codec.dump_arguments(serializer, (_Spot(2**53 + 1, []),), {})


@pytest.mark.parametrize("calls", range(12))
def test_whatever_the_code_of_a_type_raises_is_an_error_that_names_the_argument(calls: int) -> None:
    left = [1_000]

    class Key(NamedTuple):
        number: int

        def __hash__(self) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise KeyError(self.number)
            return self.number

    def look_up(keys: set[Key]) -> None:
        pass

    look_up.__annotations__["keys"] = set[Key]
    function = TaskFunction[None]("m:look_up", look_up)
    keys = {Key(1)}
    function.dump_arguments(MsgpackSerializer(), (keys,), {})
    left[0] = calls
    try:
        function.dump_arguments(MsgpackSerializer(), (keys,), {})
    except SitqError as error:
        assert "parameter 'keys'" in str(error)  # noqa: PT017 - it need not be raised
