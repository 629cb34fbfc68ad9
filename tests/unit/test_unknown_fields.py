"""A field that a model does not know is never dropped: what reads a task or a result refuses it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from sitq.errors import ValidationError
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer
from tests.unit.function_samples import Cat, Dog, Node

serializer = MsgpackSerializer()


class Ignoring(BaseModel):
    name: str = ""


class SaysIgnore(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str = ""


class Keeping(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = ""
    inner: Ignoring | None = None
    children: list[Keeping] = []


class WithInit(BaseModel):
    name: str = ""

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


class Renamed(BaseModel):
    """A model whose own code reads what an older version of it wrote."""

    name: str = ""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        if isinstance(data, dict) and "title" in data:
            data = {**data, "name": data["title"]}
            del data["title"]
        return data


class Holder(BaseModel):
    keeping: Keeping | None = None
    ignoring: Ignoring | None = None
    with_init: WithInit | None = None
    renamed: Renamed | None = None


@dataclasses.dataclass
class Plain:
    model: Ignoring
    number: int = 0


@pydantic.dataclasses.dataclass
class Checked:
    model: Ignoring


class Typed(TypedDict, total=False):
    model: Ignoring


class Pair(NamedTuple):
    left: Ignoring
    right: int = 0


def taking(annotation: Any) -> TaskFunction[Any]:
    def f(x: Any) -> Any: ...

    f.__qualname__ = "f"
    f.__annotations__ = {"x": annotation, "return": annotation}
    return TaskFunction("m:f", f)


def read(annotation: Any, plain: Any) -> Any:
    payload = serializer.dumps([[plain], {}])
    (value,), _ = taking(annotation).load_arguments(serializer, payload)
    assert taking(annotation).load_result(serializer, serializer.dumps(plain)) == value
    return value


NEW = {"name": "a", "phone": 1}


@pytest.mark.parametrize(
    ("annotation", "plain", "where"),
    [
        (Ignoring, NEW, "unknown field 'phone'"),
        (SaysIgnore, NEW, "unknown field 'phone'"),
        (Ignoring | None, NEW, "unknown field 'phone'"),
        (list[Ignoring], [{}, NEW], "at 1: unknown field 'phone'"),
        (dict[str, Ignoring], {"k": NEW}, "unknown field 'phone'"),
        (tuple[Ignoring, int], (NEW, 1), "at 0: unknown field 'phone'"),
        (Ignoring | int, NEW, "unknown field 'phone'"),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog", "legs": 4}, "'legs'"),
        (Plain, {"model": NEW}, "at model: unknown field 'phone'"),
        (Plain, {"model": {}, "more": 1}, "unknown field 'more'"),
        (Checked, {"model": NEW}, "at model: unknown field 'phone'"),
        (Typed, {"model": NEW}, "at model: unknown field 'phone'"),
        (Typed, {"more": 1}, "unknown field 'more'"),
        (Pair, (NEW, 1), "unknown field 'phone'"),
        (Node, {"children": [{"children": [], "age": 1}]}, r"at children.0: unknown field 'age'"),
        (Keeping, {"inner": NEW}, "at inner: unknown field 'phone'"),
        (Keeping, {"children": [{"inner": NEW}]}, r"at children.0.inner: unknown field 'phone'"),
        (list[Keeping], [{"inner": NEW}], r"at 0.inner: unknown field 'phone'"),
        (Holder, {"ignoring": NEW}, "at ignoring: unknown field 'phone'"),
        (Holder, {"more": 1}, "unknown field 'more'"),
        (WithInit, NEW, "unknown field 'phone'"),
        (Holder, {"with_init": NEW}, "at with_init: unknown field 'phone'"),
        (Renamed, {"title": "a", "phone": 1}, "unknown field 'phone'"),
        (Ignoring, {"not a name": 1}, "a field that it does not know"),
    ],
)
def test_a_field_that_a_model_does_not_know_is_refused_and_named(
    annotation: Any, plain: Any, where: str
) -> None:
    with pytest.raises(ValidationError, match=rf"^f\(\): parameter 'x': .*{where}"):
        taking(annotation).load_arguments(serializer, serializer.dumps([[plain], {}]))
    with pytest.raises(ValidationError, match=rf"^f\(\): the return value: .*{where}"):
        taking(annotation).load_result(serializer, serializer.dumps(plain))


def test_a_model_that_allows_extra_fields_keeps_them() -> None:
    assert read(Keeping, NEW).model_extra == {"phone": 1}
    assert read(Holder, {"keeping": NEW}).keeping.model_extra == {"phone": 1}
    assert read(list[Keeping], [{"children": [NEW]}])[0].children[0].model_extra == {"phone": 1}


def test_a_model_may_read_the_fields_of_an_older_version_itself() -> None:
    assert read(Renamed, {"title": "a"}) == Renamed(name="a")
    assert read(Holder, {"renamed": {"title": "a"}}).renamed == Renamed(name="a")


def test_a_member_of_a_union_that_knows_all_fields_is_chosen() -> None:
    class Wider(BaseModel):
        name: str = ""
        phone: int = 0

    assert read(Ignoring | Wider, NEW) == Wider(name="a", phone=1)
