"""What the tests of the queue share: functions to enqueue, a store that can be watched."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from sitq import MsgpackSerializer, Result, TaskId, TaskQueue, task
from sitq.backends.memory import MemoryBackend
from sitq.models import Outcome, Task
from sitq.payload.registry import default_registry
from sitq.protocols import Backend, Clock, Listener, Topic
from sitq.testing import FakeClock


def add(a: int, b: int) -> int:
    return a + b


async def greet(name: str) -> str:
    return f"hello {name}"


def remind(text: str, eta: str = "") -> str:
    """A function with a parameter that is called like an option."""
    return text + eta


@task(queue="mail", priority=7, timeout=30.0, result_ttl=60.0)
def mail(to: str) -> None:
    """A function with options of its own."""


class SpySerializer(MsgpackSerializer):
    """Notes what it decodes."""

    def __init__(self, *keys: bytes) -> None:
        super().__init__(keys=keys or None)
        self.decoded: list[bytes] = []

    def loads(self, data: bytes) -> Any:
        self.decoded.append(data)
        return super().loads(data)


class SpyBackend(MemoryBackend):
    """A store that records its calls, and fails on request."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self.looks: list[tuple[TaskId[Any], ...]] = []
        self.listeners = 0
        self.listened = 0
        self.opened = 0
        self.errors: list[Exception] = []
        self.stored: list[Task] = []
        self.hanging = 0

    async def open(self) -> None:
        await super().open()
        self.opened += 1

    async def close(self) -> None:
        await super().close()
        self.opened -= 1

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        ids = await super().enqueue(tasks)
        self.stored.extend(tasks)
        return ids

    async def retry_tasks(
        self, repeats: Sequence[Task], *, again: bool
    ) -> list[TaskId[Any] | None]:
        ids = await super().retry_tasks(repeats, again=again)
        self.stored.extend(repeats)
        return ids

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        self.looks.append(tuple(task_ids))
        if self.hanging:
            self.hanging -= 1
            await anyio.sleep_forever()
        if self.errors:
            raise self.errors.pop(0)
        return await super().get_results(task_ids)

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        async with super().listen(topic) as listener:
            self.listeners += 1
            self.listened += 1
            try:
                yield listener
            finally:
                self.listeners -= 1


class Waiter:
    """A call of `get_result` in a task of its own."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.result: Result[Any] | None = None
        self.error: Exception | None = None

    async def run(self, queue: TaskQueue, task_id: str, timeout: float | None = None) -> None:
        try:
            with self.scope:
                self.result = await queue.get_result(task_id, timeout)
        except Exception as error:
            self.error = error
        self.ended.set()


@asynccontextmanager
async def spied_queue() -> AsyncIterator[tuple[TaskQueue, SpyBackend, FakeClock]]:
    """A queue on a store that can be watched, on a clock that stands still."""
    clock = FakeClock()
    backend = SpyBackend(clock)
    async with TaskQueue(backend) as queue:
        yield queue, backend, clock


async def finish(backend: Backend, value: object = None, *, error: str | None = None) -> int:
    """End all tasks that are due, as a worker would; return how many."""
    reserved = (await backend.reserve("hand", ("default", "mail"), 10_000, 30.0)).tasks
    data = MsgpackSerializer().dumps(value)
    await backend.finish(
        [
            Outcome.success(task.lease, data)
            if error is None
            else Outcome.failure(task.lease, error, "Traceback: the remote one")
            for task in reserved
        ]
    )
    return len(reserved)


def arguments(task: Task) -> dict[str, Any]:
    """What a worker would call the task's function with, by parameter."""
    function = default_registry.get(task.function)
    assert function is not None
    args, kwargs = function.load_arguments(MsgpackSerializer(), task.payload)
    return inspect.signature(function.func).bind(*args, **kwargs).arguments
