"""Types of extensions, for mypy and pyright to read; never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_type

from sitq import (
    Extension,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskContext,
    TaskId,
    TaskQueue,
    Worker,
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
