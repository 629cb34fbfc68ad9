"""Types of extensions and resources, for mypy and pyright to read; never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, assert_type

from sitq import (
    Extension,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskContext,
    TaskId,
    TaskQueue,
    Worker,
    current_task,
    shared,
)
from sitq.extensions import AttemptEnded, Event, TaskEnqueued
from sitq.models import OutcomeKind


class Whole(Extension):
    """Overrides everything."""

    async def around_enqueue(
        self,
        tasks: Sequence[Task],
        call_next: Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]],
    ) -> list[TaskId[Any]]:
        """Add a header."""
        assert_type(tasks[0].with_headers({"a": "b"}), Task)
        return await call_next([task.with_headers({"a": "b"}) for task in tasks])

    async def around_attempt(
        self, context: TaskContext, call_next: Callable[[], Awaitable[object]]
    ) -> object:
        """Pass the value on."""
        assert_type(await call_next(), object)
        return await call_next()

    def around_attempt_sync(self, context: TaskContext, call_next: Callable[[], object]) -> object:
        """Pass the value on."""
        return call_next()

    def on_event(self, event: Event) -> None:
        """Tell the events apart."""
        if isinstance(event, AttemptEnded):
            assert_type(event.outcome, OutcomeKind | None)
            assert_type(event.duration, float)
        elif isinstance(event, TaskEnqueued):
            assert_type(event.queue, str)


class Wrong(Extension):
    """What is called with an event has to take it."""

    def on_event(self, event: int) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take something else."""


TaskQueue(SQLiteBackend(), extensions=[Whole(), Extension()])
SyncTaskQueue(extensions=(Whole(),))
Worker(SQLiteBackend(), extensions=[Whole()])
TaskQueue(extensions=[Whole])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
Worker(SQLiteBackend(), extensions=Whole())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Pool:
    """A resource."""

    async def __aenter__(self) -> Self:
        """Open it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""


@asynccontextmanager
async def database() -> AsyncGenerator[Pool, None]:
    """Be an async context manager."""
    yield Pool()


@contextmanager
def mailer() -> Generator[bytes, None, None]:
    """Be a context manager."""
    yield b""


async def client() -> str:
    """Be a coroutine function."""
    return ""


def settings() -> dict[str, int]:
    """Be a plain function."""
    return {}


assert_type(shared(database), Pool)
assert_type(shared(mailer), bytes)
assert_type(shared(client), str)
assert_type(shared(settings), dict[str, int])
assert_type(shared(Pool), Pool)
shared(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def report(month: str, db: Pool = shared(database), *, mail: bytes = shared(mailer)) -> str:
    """Use resources."""
    assert_type(current_task().shared(database), Pool)
    assert_type(current_task().shared(mailer), bytes)
    assert_type(current_task().shared(client), str)
    assert_type(current_task().shared(settings), dict[str, int])
    return f"{month} {db} {mail!r}"


async def wrong(db: int = shared(database)) -> None:  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    """Be a function of a wrong annotation."""
    print(db)


async def using(queue: TaskQueue) -> None:
    """Enqueue without a resource, and call with one."""
    assert_type(await queue.enqueue(report, "May"), TaskId[str])
    assert_type(await queue.options(delay=1).enqueue(report, "May"), TaskId[str])
    assert_type(await report("May", db=Pool()), str)
    await report("May", db=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await queue.options(delay=1).enqueue(report)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Worker(SQLiteBackend(), resources=[database, mailer, client, settings, Pool])
    Worker(SQLiteBackend(), resources=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
