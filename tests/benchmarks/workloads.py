"""The rates: what sitq is measured by, a task at a time or many."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio

from sitq import SyncTaskQueue, TaskQueue, Worker, call
from tests.benchmarks.stores import open_store

__all__ = [
    "begun",
    "counted",
    "drain",
    "enqueue_at_once",
    "enqueue_bulk",
    "enqueue_one",
    "enqueue_sync",
    "fill",
    "nothing",
    "nothing_in_thread",
]


async def nothing() -> None:
    """Do nothing, on the loop."""


def nothing_in_thread() -> None:
    """Do nothing, in a thread."""


_begun = 0


async def counted() -> None:
    """Do nothing but count the calls in this process."""
    global _begun  # noqa: PLW0603 - a task's function has no other place
    _begun += 1


def begun() -> int:
    """How often this process has run `counted`."""
    return _begun


async def fill(queue: TaskQueue, count: int, function: Any = nothing) -> None:
    """Enqueue so many tasks, a thousand a call."""
    for start in range(0, count, 1000):
        await queue.enqueue_many([call(function)] * min(1000, count - start))


async def drain(store: str, count: int, concurrency: int, function: Any = nothing) -> float:
    """Tasks drained a second by one worker, results kept."""
    backend = open_store(store)
    async with TaskQueue(backend) as queue:
        await fill(queue, count, function)
        worker = Worker(backend, max_concurrency=concurrency)
        start = time.perf_counter()
        drained = await worker.drain()
        rate = drained / (time.perf_counter() - start)
        if drained != count:
            raise AssertionError(f"{drained} of {count} were drained")
        return rate


async def enqueue_one(store: str, count: int) -> float:
    """Tasks a second, one after the other."""
    async with TaskQueue(open_store(store)) as queue:
        await queue.enqueue(nothing)
        start = time.perf_counter()
        for _ in range(count):
            await queue.enqueue(nothing)
        return count / (time.perf_counter() - start)


def enqueue_sync(store: str, count: int, threads: int = 1) -> float:
    """Tasks a second from threads without a loop, each one after the other."""
    with SyncTaskQueue(open_store(store)) as queue:
        queue.enqueue(nothing)

        def caller() -> None:
            for _ in range(count // threads):
                queue.enqueue(nothing)

        callers = [threading.Thread(target=caller) for _ in range(threads - 1)]
        start = time.perf_counter()
        for each in callers:
            each.start()
        caller()
        for each in callers:
            each.join()
        return count / (time.perf_counter() - start)


async def enqueue_at_once(store: str, count: int, callers: int = 100) -> float:
    """Tasks a second, from many callers at once."""
    async with TaskQueue(open_store(store)) as queue:

        async def caller() -> None:
            for _ in range(count // callers):
                await queue.enqueue(nothing)

        await queue.enqueue(nothing)
        start = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(caller)
        return count / (time.perf_counter() - start)


async def enqueue_bulk(store: str, count: int) -> float:
    """Tasks a second, a thousand a call."""
    async with TaskQueue(open_store(store)) as queue:
        await fill(queue, 1000)
        start = time.perf_counter()
        await fill(queue, count)
        return count / (time.perf_counter() - start)
