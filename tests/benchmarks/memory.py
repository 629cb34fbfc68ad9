"""What stays in memory: of many tasks, of large results, of many who wait."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import anyio

from sitq import TaskQueue, Worker, call
from tests.benchmarks.measuring import run_on
from tests.benchmarks.processes import rss_of, worker
from tests.benchmarks.stores import open_store, redacted_dsn
from tests.benchmarks.workloads import fill, nothing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Waited", "hundred_kilobytes", "large_results", "tasks_growth", "waiters"]

# A producer is so many tasks ahead of the worker at most.
AHEAD = 20_000
BATCH = 5_000
LARGE = b"x" * 100_000

Waited = tuple[float, float]


async def hundred_kilobytes() -> bytes:
    """Return a large result."""
    return LARGE


def tasks_growth(store: str, loop: str, count: int) -> float:
    """MiB by which a worker's process grows from its first 50,000 tasks to its last."""
    warm = min(50_000, count // 4)
    with worker(store, loop) as process:
        process.begin()
        run_on("asyncio", _feed, store, warm)
        before = rss_of(process.pid)
        run_on("asyncio", _feed, store, count - warm)
        return rss_of(process.pid) - before


async def _feed(store: str, count: int) -> None:
    """Enqueue tasks, not too far ahead of the worker; return once all have ended."""
    async with TaskQueue(open_store(store)) as queue:
        for _ in range(0, count, BATCH):
            while _unfinished(redacted_dsn(store)) > AHEAD - BATCH:  # noqa: ASYNC110 - others count
                await anyio.sleep(0.02)
            await fill(queue, BATCH)
        while _unfinished(redacted_dsn(store)):  # noqa: ASYNC110 - see above
            await anyio.sleep(0.02)


UNFINISHED = """
SELECT (SELECT count(*) FROM tasks INDEXED BY tasks_due WHERE status = 'pending')
     + (SELECT count(*) FROM leases)
"""


def _unfinished(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute(UNFINISHED).fetchone()[0]
        return found


async def large_results(store: str, count: int) -> Waited:
    """MB of results of 100 kB that a worker stores a second, and MiB that it grows by."""
    backend = open_store(store)
    async with TaskQueue(backend) as queue:
        for start in range(0, count, 1000):
            await queue.enqueue_many([call(hundred_kilobytes)] * min(1000, count - start))
        before, start_at = rss_of(os.getpid()), time.perf_counter()
        drained = await Worker(backend, max_concurrency=100).drain()
        rate = drained * len(LARGE) / 1e6 / (time.perf_counter() - start_at)
        return rate, rss_of(os.getpid()) - before


async def waiters(store: str, count: int) -> Waited:
    """Results a second that reach as many callers, all of whom wait, and MiB for them."""
    backend = open_store(store)
    async with TaskQueue(backend) as queue:
        ids = [
            task_id
            for start in range(0, count, 1000)
            for task_id in await queue.enqueue_many([call(nothing)] * min(1000, count - start))
        ]
        before, returned = rss_of(os.getpid()), 0

        async def wait(task_id: str) -> None:
            nonlocal returned
            if await queue.get_result(task_id) is not None:
                returned += 1

        async with anyio.create_task_group() as group:
            for task_id in ids:
                group.start_soon(wait, task_id)
            await anyio.sleep(0.5)
            grown, start = rss_of(os.getpid()) - before, time.perf_counter()
            await Worker(backend, max_concurrency=100).drain()
        if returned != count:
            raise AssertionError(f"{returned} of {count} callers have their result")
        return count / (time.perf_counter() - start), grown
