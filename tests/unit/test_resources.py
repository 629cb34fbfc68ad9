"""Parameters that are resources: no arguments of a task, and clear errors where none is given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from sitq import SyncTaskQueue, TaskQueue, UsageError, ValidationError, Worker, call, shared, task
from sitq.backends.memory import MemoryBackend
from sitq.payload.functions import TaskFunction
from sitq.testing import FakeClock
from tests.unit.queue_support import SpyBackend


class Pool:
    def query(self) -> str:
        return "rows"


@asynccontextmanager
async def database() -> AsyncIterator[Pool]:
    yield Pool()


@contextmanager
def mailer() -> Iterator[list[str]]:
    yield []


async def report(month: str, db: Pool = shared(database)) -> str:
    return f"{month}: {db.query()}"


def last(month: str, *, year: int = 2026, db: Pool = shared(database)) -> str:
    return f"{month} {year}: {db.query()}"


def middle(month: str, db: Pool = shared(database), year: int = 2026) -> str:
    return f"{month} {year}: {db.query()}"


def loose(db: Pool = shared(database), *rest: str, **options: str) -> str:
    return f"{db.query()} {rest} {options}"


def positional(db: Pool = shared(database), /) -> None: ...


def unresolved(month: str, db: Undefined = shared(database)) -> str:  # type: ignore[name-defined]  # noqa: F821
    return month


@task
def marked(month: str, db: Pool = shared(database)) -> str:
    return month


@pytest.mark.anyio
async def test_a_resource_is_absent_from_the_payload_and_from_the_checks() -> None:
    backend = SpyBackend()
    async with TaskQueue(backend) as queue:
        await queue.enqueue(report, "May")
        await queue.enqueue(middle, "May", year=2025)
        await queue.enqueue(unresolved, "May")
        await queue.enqueue(loose, a="b")
    assert [each.payload for each in backend.stored] == [
        b"\x92\x91\xa3May\x80",
        b"\x92\x91\xa3May\x81\xa4year\xcd\x07\xe9",
        b"\x92\x91\xa3May\x80",
        b"\x92\x90\x81\xa1a\xa1b",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (call(report, "May", db=Pool()), r"report\(\): 'db' is a resource, which the worker gives"),
        (call(report, "May", Pool()), "'db' is a resource"),
        (call(last, "May", db=Pool()), "'db' is a resource"),
        (call(loose, db=Pool()), "'db' is a resource"),
        (call(loose, Pool()), "'db' is a resource"),
        (call(middle, "May", Pool(), 2025), "'db' is a resource"),
        (call(positional), r"'db': the worker gives a resource by keyword; move it after the '/'"),
    ],
)
async def test_a_resource_is_refused_as_an_argument(made: Any, message: str) -> None:
    backend = SpyBackend()
    async with TaskQueue(backend) as queue:
        with pytest.raises(ValidationError, match=message):
            await queue.enqueue_many([made])
    assert not backend.stored


def test_a_sync_queue_refuses_it_too() -> None:
    with (
        SyncTaskQueue(MemoryBackend()) as queue,
        pytest.raises(ValidationError, match="leave it out"),
    ):
        queue.enqueue(last, "May", db=Pool())


@pytest.mark.anyio
async def test_a_test_calls_the_function_with_a_resource_of_its_own() -> None:
    assert await report("May", db=Pool()) == "May: rows"
    assert last("May", db=Pool()) == "May 2026: rows"


USES: list[Callable[[Any], object]] = [
    lambda db: db.query(),
    lambda db: db.name,
    lambda db: db(),
    lambda db: db["a"],
    bool,
    len,
    list,
    lambda db: "a" in db,
    lambda db: db.__enter__(),
    lambda db: db.__aenter__(),
    lambda db: db.__await__(),
]


@pytest.mark.parametrize("use", USES)
def test_without_it_the_first_use_says_what_is_missing(use: Callable[[Any], object]) -> None:
    default = inspect.signature(report).parameters["db"].default
    with pytest.raises(UsageError, match="the resource database was not given: .*by keyword"):
        use(default)


@pytest.mark.anyio
async def test_a_direct_call_without_it_fails_at_the_first_use() -> None:
    with pytest.raises(UsageError, match=r"current_task\(\).shared\(database\)"):
        await report("May")
    with pytest.raises(UsageError, match="database was not given"):
        last("May")


def test_the_default_can_be_shown_and_copied() -> None:
    default = inspect.signature(report).parameters["db"].default
    assert repr(default) == "shared(database)"
    assert "shared(database)" in str(inspect.signature(report))
    assert repr(copy.copy(default)) == "shared(database)"


async def generator() -> AsyncIterator[int]:
    yield 1


def plain_generator() -> Iterator[int]:
    yield 1


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (5, "give the function that makes the resource .got int"),
        (Pool(), "give the function that makes the resource .got Pool"),
        (generator, "generator is a generator; put @asynccontextmanager above it"),
        (plain_generator, "plain_generator is a generator; put @contextmanager above it"),
        (shared(database), r"give the factory itself, without shared"),
        (Unhashable(), "the factory has no hash"),
    ],
)
def test_what_makes_no_resource_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=f"shared: {message}"):
        shared(factory)
    with pytest.raises(ValidationError, match=f"resources: {message}"):
        Worker(MemoryBackend(), resources=[factory])


@pytest.mark.parametrize(
    ("given", "got"), [(database, "function"), ("database", "str"), (1, "int")]
)
def test_resources_are_given_as_a_list(given: Any, got: str) -> None:
    with pytest.raises(ValidationError, match=rf"resources: give a list .*got {got}"):
        Worker(MemoryBackend(), resources=given)


@pytest.mark.parametrize("function", [report, last, middle, loose, unresolved, marked])
def test_a_worker_is_not_made_without_the_resource_of_its_function(function: Any) -> None:
    message = rf"tasks: {function.__name__}\(\) needs the resource database for its parameter 'db'"
    with pytest.raises(ValidationError, match=message):
        Worker(MemoryBackend(), tasks=[function], resources=[mailer])
    Worker(MemoryBackend(), tasks=[function], resources=[mailer, database])


def test_functions_that_another_worker_of_the_process_may_run_are_no_reason() -> None:
    """`marked` is known to every worker of this process."""
    Worker(MemoryBackend(clock=FakeClock()))


def test_the_resources_of_a_function_are_known_by_parameter() -> None:
    assert TaskFunction("a", report).needs() == {"db": database}
    assert TaskFunction("a", unresolved).needs() == {"db": database}
    assert TaskFunction("a", len).needs() == {}
