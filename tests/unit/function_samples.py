"""Types of all kinds that the tests of functions annotate."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    ODD = (1, 2)


class Name(enum.StrEnum):
    ANN = "ann"


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class User(BaseModel):
    name: str
    born: dt.date | None = None
    tags: set[str] = Field(default_factory=set)
    colour: Colour = Colour.RED


class Admin(User):
    rank: int = 1


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, serialize_by_alias=True, extra="forbid")

    number: int = Field(alias="theNumber")
    pair: tuple[int, str] = (1, "x")
    at: dt.datetime | None = None
    inner: User | None = None
    colour: Colour = Colour.RED


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 0


class Secretive(BaseModel):
    key: pydantic.SecretStr
    hidden: int = Field(default=1, exclude=True)


class Box(BaseModel, Generic[T]):
    content: T


class Node(BaseModel):
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Point(BaseModel):
    x: int


class Pixel(BaseModel):
    x: int


@dataclasses.dataclass
class Job:
    user: User
    when: dt.timedelta = dt.timedelta(0)


@dataclasses.dataclass(frozen=True)
class Key:
    n: int


@pydantic.dataclasses.dataclass
class Checked:
    n: Annotated[int, Field(gt=0, alias="enn")]


class Pair(NamedTuple):
    left: int
    right: User | None = None


class Options(TypedDict, total=False):
    size: int
    user: User


class Celsius:
    """A type with a core schema of its own."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        core = pydantic_core.core_schema
        return core.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core.plain_serializer_function_ser_schema(lambda value: value.degrees),
        )
