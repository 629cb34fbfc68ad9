"""What the tests of the worker share: a gate, a worker beside a block, and plain tasks."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from sitq import Result, SQLiteBackend, TaskQueue, Worker


class Gate:
    """Lets a test and the functions that it runs wait for each other, across threads."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.log: list[Any] = []

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.set()

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


GATE = Gate()


async def until(fact: Callable[[], object]) -> None:
    """Wait for a fact that only another thread can bring about."""
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110 - threads and stores set no event of the loop's
            await anyio.sleep(0.002)


@asynccontextmanager
async def working(tmp_path: Path, **options: Any) -> AsyncIterator[Worker]:
    """A worker of its own backend that runs beside the block."""
    worker = Worker(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL"), **options)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        yield worker
        await worker.stop()


async def ended(queue: TaskQueue, task_id: Any) -> Result[Any]:
    result: Result[Any] | None = await queue.get_result(task_id, timeout=20)
    assert result is not None
    return result


async def add(a: int, b: int) -> int:
    return a + b


def multiply(a: int, b: int) -> int:
    return a * b


async def bounded() -> None:
    GATE.enter()
    await until(GATE.opened.is_set)
    GATE.leave()


def bounded_in_thread() -> None:
    GATE.enter()
    GATE.opened.wait(20)
    GATE.leave()


async def endless() -> None:
    GATE.enter()
    try:
        await anyio.sleep_forever()
    finally:
        GATE.leave()


def fail(text: str) -> None:
    raise ValueError(text)
