"""Options and values of subclasses arrive at the store as values of the plain types."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID, uuid4

import pydantic
import pytest

from sitq import (
    Retry,
    RetryPolicy,
    SQLiteBackend,
    TaskQueue,
    ValidationError,
    Worker,
    current_task,
    task,
)
from sitq._builtin_types import plain
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend

SEEN: list[Any] = []


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("a method of the subclass was called")


class Text(str):
    """A text that shows itself as something else."""

    __slots__ = ()
    __str__ = __repr__ = __hash__ = __eq__ = __len__ = encode = __format__ = refuse
    __iter__ = __getitem__ = lower = __contains__ = refuse


class Whole(int):
    """An int with arithmetic of its own."""

    __int__ = __index__ = __float__ = __str__ = __repr__ = __eq__ = __hash__ = refuse
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __mul__ = __bool__ = refuse


class Real(float):
    """A float as numpy's: another class with methods of its own."""

    __float__ = __int__ = __str__ = __repr__ = __eq__ = __hash__ = is_integer = refuse
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __mul__ = __bool__ = refuse


class Moment(datetime):
    """A datetime as pendulum's: what it makes of itself is of its own class."""

    utcoffset = astimezone = isoformat = replace = timestamp = __eq__ = __hash__ = refuse
    __sub__ = __add__ = __str__ = __lt__ = __le__ = __gt__ = __ge__ = refuse
    year = month = day = property(refuse)


class Duration(timedelta):
    """A timedelta as pendulum's."""

    total_seconds = __eq__ = __hash__ = __str__ = __lt__ = __le__ = __add__ = refuse
    days = seconds = microseconds = property(refuse)


class Day(date):
    isoformat = __str__ = __eq__ = __hash__ = refuse


class Clock(time):
    isoformat = __str__ = __eq__ = __hash__ = replace = utcoffset = refuse


class Amount(Decimal):
    __str__ = __eq__ = __hash__ = as_tuple = adjusted = refuse


class Ident(UUID):
    __str__ = __eq__ = __hash__ = refuse


class Zone(tzinfo):
    """A zone that answers with a subclass."""

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        return Duration(hours=2)

    def dst(self, _moment: datetime | None) -> timedelta:
        return Duration(0)

    def tzname(self, _moment: datetime | None) -> str:
        return Text("odd")


class Headers(dict[str, str]):
    items = keys = values = __iter__ = refuse


class Lane(StrEnum):
    FAST = "fast"


class Rank(IntEnum):
    HIGH = 50


class Policy(RetryPolicy):
    """A policy with a field that sitq does not store."""

    team: str = "a"


PLAIN: list[tuple[Any, Any]] = [
    (Text("text"), "text"),
    (Whole(3), 3),
    (Real(1.5), 1.5),
    (Moment(2024, 1, 2, 3, 4, 5, 6, UTC, fold=1), datetime(2024, 1, 2, 3, 4, 5, 6, UTC, fold=1)),
    (Duration(days=-1, microseconds=5), timedelta(days=-1, microseconds=5)),
    (Day(2024, 1, 2), date(2024, 1, 2)),
    (Clock(1, 2, 3, 4, UTC), time(1, 2, 3, 4, UTC)),
    (Amount("-1.50"), Decimal("-1.50")),
    (Ident(int=5), UUID(int=5)),
    (Lane.FAST, "fast"),
    (Rank.HIGH, 50),
]


@pytest.mark.parametrize(("value", "expected"), PLAIN, ids=lambda value: type(value).__name__)
def test_a_value_of_a_subclass_becomes_one_of_the_plain_type(value: Any, expected: Any) -> None:
    made = plain(value)
    assert type(made) is type(expected)
    assert made == expected


def test_a_value_of_another_class_stays_as_it_is() -> None:
    values = [None, True, object(), [], uuid4(), pathlib.Path()]
    assert [plain(value) for value in values] == values


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    return SQLiteBackend(Text(tmp_path / "q.db"), synchronous="NORMAL")


def note(
    text: str, number: int, real: float, moment: datetime, length: timedelta, many: list[datetime]
) -> datetime:
    SEEN[:] = [text, number, real, moment, length, *many]
    context = current_task()
    context.progress(Whole(1), Whole(2), Text("half"))
    assert dict(context.headers) == {"a": "b"}
    return Moment(2024, 1, 1, tzinfo=UTC)


async def check_options_and_values(backend: Backend) -> None:
    """Everything that a caller gives is of a subclass; a store of any kind takes it."""
    # The conversions are the point: the types of the values are right.
    async with TaskQueue(backend) as queue:
        bound = queue.options(
            eta=Moment(2024, 1, 1, tzinfo=Zone()),
            queue=Text("lane"),
            priority=Whole(7),
            timeout=Real(60.0),
            retry=Policy(max_attempts=Whole(3), delay=Real(0.5), retry_on=(Text("a.B"),)),
            unique_key=Text("key"),
            expires_at=Moment(9000, 1, 1, tzinfo=UTC),
            result_ttl=Whole(1000),
            headers=Headers(a=Text("b")),
        )
        task_id = await bound.enqueue(
            note,
            Text("text"),
            Whole(3),
            Real(1.5),
            Moment(2024, 1, 1, tzinfo=UTC),
            Duration(seconds=5),
            [Moment(2025, 1, 1, tzinfo=UTC)],
        )
        await queue.options(delay=Duration(days=1), queue=Lane.FAST, priority=Rank.HIGH).enqueue(
            note, "", 1, 1.0, datetime.now(UTC), timedelta(0), []
        )
        info = await queue.get_task(Text(task_id))
        assert info.eta == datetime(2023, 12, 31, 22, tzinfo=UTC)
        assert (info.queue, info.priority) == ("lane", 7)
        worker = Worker(
            backend,
            tasks=[note],
            queues=[Text("lane"), Lane.FAST],
            max_concurrency=Whole(2),
            poll_interval=Real(1.0),
            lease=Whole(30),
            retry=Policy(),
            max_crashes=Whole(3),
        )
        assert await worker.drain() == 1
        result = await queue.result(task_id)
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    expected = [
        "text", 3, 1.5, moment, timedelta(seconds=5), datetime(2025, 1, 1, tzinfo=UTC)
    ]  # fmt: skip
    assert expected == SEEN
    assert list(map(type, SEEN)) == [str, int, float, datetime, timedelta, datetime]
    assert result == moment
    assert type(result) is datetime


@pytest.mark.anyio
async def test_options_and_values_of_subclasses_are_stored_as_plain_ones(backend: Backend) -> None:
    await check_options_and_values(backend)


@task(
    queue=Text("lane"),
    priority=Rank.HIGH,
    timeout=Real(5.0),
    result_ttl=Whole(9),
    retry=Policy(),
)
def marked() -> None:
    pass


def test_the_options_of_the_decorator_become_plain() -> None:
    defaults = marked.__sitq_task__.defaults  # type: ignore[attr-defined]
    assert type(defaults.queue) is str
    assert type(defaults.priority) is int
    assert type(defaults.timeout) is float
    assert type(defaults.retry) is RetryPolicy


def test_a_delay_of_a_retry_becomes_plain() -> None:
    assert type(Retry(Real(1.0)).delay) is float


@pytest.mark.anyio
@pytest.mark.parametrize("given", [lambda: Lane.FAST, lambda: [Lane.FAST]])
async def test_a_member_of_an_enum_is_more_than_its_text(given: Callable[[], Any]) -> None:
    async with TaskQueue(MemoryBackend()) as queue:
        with pytest.raises(ValidationError):
            await queue.enqueue(take, given())


def take(value: str | list[str]) -> None:
    pass


class Model(pydantic.BaseModel):
    when: datetime


def model(value: Model) -> None:
    SEEN[:] = [value.when]


@pytest.mark.anyio
async def test_a_field_of_a_model_arrives_plain_too() -> None:
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue:
        await queue.enqueue(model, Model(when=Moment(2024, 1, 1, tzinfo=UTC)))
        await Worker(backend, tasks=[model]).drain()
    assert type(SEEN[0]) is datetime
