"""The workloads: what sitq is measured by."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import anyio

from sitq import SQLiteBackend, TaskQueue, Worker, call

if TYPE_CHECKING:
    from pathlib import Path

Synchronous = Literal["FULL", "NORMAL"]


async def nothing() -> None:
    """Do nothing, on the loop."""


def nothing_in_thread() -> None:
    """Do nothing, in a thread."""


async def drain(
    path: Path, synchronous: Synchronous, count: int, concurrency: int, function: Any = nothing
) -> float:
    """Tasks drained a second by one worker, results kept."""
    backend = SQLiteBackend(path, synchronous=synchronous)
    async with TaskQueue(backend) as queue:
        for _ in range(0, count, 1000):
            await queue.enqueue_many([call(function)] * min(count, 1000))
        worker = Worker(backend, max_concurrency=concurrency)
        start = time.perf_counter()
        drained = await worker.drain()
        rate = drained / (time.perf_counter() - start)
        if drained != count:
            raise AssertionError(f"{drained} of {count} were drained")
        return rate


async def enqueue_one(path: Path, count: int) -> float:
    """Tasks a second, one after the other."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(nothing)
        start = time.perf_counter()
        for _ in range(count):
            await queue.enqueue(nothing)
        return count / (time.perf_counter() - start)


async def enqueue_at_once(path: Path, count: int, callers: int = 100) -> float:
    """Tasks a second, from many callers at once."""
    async with TaskQueue(SQLiteBackend(path)) as queue:

        async def caller() -> None:
            for _ in range(count // callers):
                await queue.enqueue(nothing)

        await queue.enqueue(nothing)
        start = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(caller)
        return count / (time.perf_counter() - start)


async def enqueue_bulk(path: Path, count: int) -> float:
    """Tasks a second, a thousand a call."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        calls = [call(nothing)] * 1000
        await queue.enqueue_many(calls)
        start = time.perf_counter()
        for _ in range(count // 1000):
            await queue.enqueue_many(calls)
        return count / (time.perf_counter() - start)


async def round_trips(path: Path, count: int, pause: float) -> list[float]:
    """Milliseconds from enqueue to result, the worker idle before each."""
    times = []
    async with TaskQueue(SQLiteBackend(path)) as queue:
        for _ in range(count):
            await anyio.sleep(pause)
            start = time.perf_counter()
            result = await queue.get_result(await queue.enqueue(nothing), timeout=10)
            times.append((time.perf_counter() - start) * 1000)
            if result is None:
                raise AssertionError("no result")
    return times


async def lateness(path: Path, count: int) -> list[float]:
    """Milliseconds from the eta to the start, the worker idle before each."""
    times = []
    async with TaskQueue(SQLiteBackend(path)) as queue:
        for number in range(count):
            eta = datetime.now(UTC) + timedelta(milliseconds=50 + number % 17)
            task_id = await queue.options(eta=eta).enqueue(nothing)
            result = await queue.get_result(task_id, timeout=10)
            if result is None or result.started_at is None:
                raise AssertionError("no result")
            times.append((result.started_at - eta) / timedelta(milliseconds=1))
    return times
