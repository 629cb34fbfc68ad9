"""What a large store costs: rates among millions of rows, pruning, several workers on one file."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import anyio

from sitq import TaskQueue, Worker
from tests.benchmarks import postgres, workloads
from tests.benchmarks.latencies import round_trips
from tests.benchmarks.measuring import run_on
from tests.benchmarks.processes import worker
from tests.benchmarks.stores import kind_of, open_store, redacted_dsn

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["QUEUES", "crowd", "grow", "prune_beside", "rate_among"]

QUEUES = 100
# A row for each number: a task of one of so many queues, final, scheduled or due.
ROWS = """
WITH RECURSIVE numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers LIMIT :count)
INSERT INTO tasks (id, status, queue, priority, eta, function, epoch, attempts, result_ttl,
                   enqueued_at, started_at, finished_at, delete_at, payload, value)
SELECT printf('%08x-0000-7000-8000-000000000000', n), :status,
       CASE WHEN :queues = 1 THEN 'default' ELSE 'q' || (n % :queues) END, 0, :eta + n,
       :function, :epoch, :epoch, 604800000000, :now, CASE WHEN :epoch THEN :now END,
       CASE WHEN :epoch THEN :now END, :delete_at + n / 500, x'929080',
       CASE WHEN :epoch THEN x'c0' END
FROM numbers
"""
DAY = 86_400_000_000
FUNCTION = f"{workloads.__name__}:counted"


def grow(store: str, *, finished: int, scheduled: int, due: int, queues: int = 1) -> None:
    """Put rows into a store; the finished ones may be pruned if there are no others."""
    run_on("asyncio", _create, store)
    if kind_of(store) == "postgres":
        postgres.grow(
            str(redacted_dsn(store)),
            finished=finished,
            scheduled=scheduled,
            due=due,
            queues=queues,
            function=FUNCTION,
        )
        return
    now = time.time_ns() // 1000
    delete_at = now + 7 * DAY if scheduled or due else now
    with closing(sqlite3.connect(redacted_dsn(store), isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        first = 0
        for status, count, eta in (
            ("success", finished, now - DAY),
            ("pending", scheduled, now + DAY),
            ("pending", due, now - DAY),
        ):
            values = {
                "first": first,
                "count": count,
                "status": status,
                "queues": queues,
                "eta": eta,
                "function": FUNCTION,
                "epoch": int(status == "success"),
                "now": now - DAY,
                "delete_at": delete_at if status == "success" else None,
            }
            if count:
                connection.execute(ROWS, values)
            first += count
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    # Or the disk would still be busy with these rows while others are measured.
    with redacted_dsn(store).open("rb") as file:
        os.fsync(file.fileno())


async def _create(store: str) -> None:
    async with TaskQueue(open_store(store)):
        pass


async def rate_among(store: str, queues: int, count: int) -> float:
    """Tasks that a worker runs a second while more are due than it runs."""
    names = ["default"] if queues == 1 else [f"q{number}" for number in range(queues)]
    running = Worker(
        open_store(store), tasks=[workloads.counted], queues=names, max_concurrency=100
    )
    async with anyio.create_task_group() as group:
        await group.start(running.start)
        await _reach(workloads.begun() + count // 10)
        first, start = workloads.begun(), time.perf_counter()
        await _reach(first + count)
        rate = (workloads.begun() - first) / (time.perf_counter() - start)
        await running.stop()
    return rate


async def _reach(count: int) -> None:
    with anyio.fail_after(300):
        while workloads.begun() < count:  # noqa: ASYNC110 - the task must stay a plain one
            await anyio.sleep(0.005)


def prune_beside(store: str, loop: str, finished: int) -> list[float]:
    """Round trips, in ms, through a worker that prunes a large store meanwhile."""
    grow(store, finished=finished, scheduled=0, due=0)
    times: list[float] = []
    with worker(store, loop) as process:
        process.begin()
        while left := _finished(redacted_dsn(store)):
            times += run_on(loop, round_trips, store, 50)
            if len(times) > finished:
                raise AssertionError(f"{left} rows are never pruned")
    return times


def _finished(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT 1 FROM tasks WHERE finished_at IS NOT NULL AND delete_at <= ? LIMIT 1"
        return bool(connection.execute(query, (time.time_ns() // 1000,)).fetchone())


def crowd(store: str, loop: str, workers: int, count: int) -> tuple[float, list[float]]:
    """The rate of several workers' processes on one store together, and the share of each."""
    grow(store, finished=0, scheduled=0, due=count)
    with ExitStack() as stack:
        processes = [stack.enter_context(worker(store, loop)) for _ in range(workers)]
        for process in processes:
            process.tell()
        start = time.perf_counter()
        _await_end(store)
        rate = count / (time.perf_counter() - start)
        shares = []
        for process in processes:
            process.expect("working")
            shares.append(process.ask()[1] / count)
    return rate, shares


def _await_end(store: str) -> None:
    """Return once all tasks of a store are final."""
    if kind_of(store) == "postgres":
        postgres.await_end(str(redacted_dsn(store)))
        return
    with closing(sqlite3.connect(redacted_dsn(store))) as connection:
        query = "SELECT 1 FROM tasks WHERE finished_at IS NULL LIMIT 1"
        while connection.execute(query).fetchone():
            time.sleep(0.005)
