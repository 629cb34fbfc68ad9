"""What an error says about values of well-known packages, none of which is installed here."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from sitq.errors import SerializationError, SitqError, ValidationError
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()


def fake(module: str, name: str, *bases: type, **members: Any) -> type:
    return type(name, bases, {"__module__": module, **members})


GENERIC = fake("numpy", "generic")
INT64 = fake("numpy", "int64", GENERIC)
NDARRAY = fake("numpy", "ndarray")
MATRIX = fake("science.arrays", "Matrix", NDARRAY)
FRAME = fake("pandas.core.frame", "DataFrame")
SERIES = fake("pandas.core.series", "Series")
NAT = fake("pandas._libs.tslibs.nattype", "NaTType")
STRUCT = fake("msgspec", "Struct")
ORDER = fake("shop", "Order", STRUCT)
ATTRS = fake("shop", "Item", __attrs_attrs__=())
OWN = fake("shop", "Handle")


@dataclasses.dataclass
class Job:
    data: Any


class Model(BaseModel):
    job: Job
    other: dict[str, Any] = {}


def taking(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__qualname__ = "f"
    f.__annotations__ = {"x": annotation, "return": annotation}
    return TaskFunction("m:f", f)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (INT64, r"with .item\(\), or with int\(\) or float\(\)"),
        (NDARRAY, r"array.tolist\(\)"),
        (MATRIX, r"array.tolist\(\)"),
        (FRAME, r"frame.to_dict\('records'\)"),
        (SERIES, r"series.tolist\(\)"),
        (NAT, "pass None"),
        (ORDER, r"msgspec.to_builtins\(value\).*dataclass or a pydantic model"),
        (ATTRS, r"attrs.asdict\(value\).*dataclass or a pydantic model"),
    ],
)
@pytest.mark.parametrize("annotation", [Any, int, list[float], "itself"])
def test_the_error_says_what_to_do_instead(kind: type, advice: str, annotation: Any) -> None:
    function = taking(kind if annotation == "itself" else annotation)
    for dump in (function.dump_result, lambda s, v: function.dump_arguments(s, (v,), {})):
        with pytest.raises((SerializationError, ValidationError), match=advice):
            dump(serializer, kind())


def test_the_error_says_where_the_value_is() -> None:
    for value in (Model(job=Job(NDARRAY())), Model(job=Job({"secret": [NDARRAY()]}))):
        with pytest.raises(
            SerializationError, match=r"; an ndarray at job\.data(\.0)?; pass array"
        ) as caught:
            taking(Model).dump_arguments(serializer, (value,), {})
        assert "secret" not in str(caught.value)
    with pytest.raises(SerializationError, match=r"parameter 'x': .*; a Handle at 1\.0"):
        taking(Any).dump_arguments(serializer, ([1, (OWN(),)],), {})


def test_a_value_that_holds_itself_is_not_walked_for_ever() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    with pytest.raises(SerializationError, match="over the limit|holds itself"):
        taking(Any).dump_arguments(serializer, (loop,), {})


class Timestamp(datetime):
    """Has nanoseconds beside, as that of pandas."""

    __module__ = "pandas._libs.tslibs.timestamps"


@pytest.mark.parametrize("annotation", [datetime, Any, list[datetime], datetime | None])
def test_a_datetime_of_pandas_is_not_taken_for_a_plain_one(annotation: Any) -> None:
    def at(moment: Any) -> None: ...

    at.__annotations__["moment"] = annotation
    moment: Any = Timestamp(2026, 1, 2)
    if annotation == list[datetime]:
        moment = [moment]
    with pytest.raises(SitqError, match=r"timestamp\.to_pydatetime\(\)"):
        TaskFunction[None]("m:at", at).dump_arguments(MsgpackSerializer(), (moment,), {})
