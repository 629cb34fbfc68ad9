"""How long things take, one at a time: round trips, starts after an eta, an idle worker."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio

from sitq import TaskQueue, Worker
from tests.benchmarks.measuring import run_on
from tests.benchmarks.processes import worker
from tests.benchmarks.stores import open_store
from tests.benchmarks.workloads import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "idle_share",
    "import_ratio",
    "lateness",
    "p50",
    "p99",
    "round_trips",
    "round_trips_here",
    "through_a_worker",
]

Times = list[float]


def p50(times: Times) -> float:
    """The middle of all times."""
    return statistics.median(times)


def p99(times: Times) -> float:
    """The time that one in a hundred exceeds."""
    return sorted(times)[min(len(times) - 1, len(times) * 99 // 100)]


async def round_trips(store: str, count: int, pause: float = 0.005) -> Times:
    """Milliseconds from enqueue to result, the worker idle for so many seconds before each."""
    async with TaskQueue(open_store(store)) as queue:
        return await _round_trips(queue, count, pause)


async def _round_trips(queue: TaskQueue, count: int, pause: float) -> Times:
    times = []
    for _ in range(count):
        await anyio.sleep(pause)
        start = time.perf_counter()
        result = await queue.get_result(await queue.enqueue(nothing), timeout=10)
        times.append((time.perf_counter() - start) * 1000)
        if result is None:
            raise AssertionError("no result")
    return times


async def round_trips_here(store: str, count: int, pause: float = 0.005) -> Times:
    """The same with the worker in this process, sharing the backend."""
    backend = open_store(store)
    running = Worker(backend, poll_interval=60)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        await group.start(running.start)
        times = await _round_trips(queue, count, pause)
        await running.stop()
    return times


async def lateness(store: str, count: int) -> Times:
    """Milliseconds from the eta to the start, the worker idle before each."""
    times = []
    async with TaskQueue(open_store(store)) as queue:
        for number in range(count):
            eta = datetime.now(UTC) + timedelta(milliseconds=50 + number % 17)
            task_id = await queue.options(eta=eta).enqueue(nothing)
            result = await queue.get_result(task_id, timeout=10)
            if result is None or result.started_at is None:
                raise AssertionError("no result")
            times.append((result.started_at - eta) / timedelta(milliseconds=1))
    return times


def through_a_worker(
    work: Callable[..., object], store: str, loop: str, count: int, choose: Callable[[Times], float]
) -> float:
    """Measure times with a worker in another process, on a loop of the same kind."""
    with worker(store, loop) as process:
        process.begin()
        times: Times = run_on(loop, work, store, count)
        return choose(times)


def idle_share(store: str, loop: str, seconds: float) -> float:
    """The share of a core that a worker with nothing to do uses, in percent."""
    with worker(store, loop) as process:
        process.begin()
        time.sleep(0.5)
        process.ask()
        time.sleep(seconds)
        return process.ask()[0]


def import_ratio(ours: str, theirs: str, tries: int) -> float:
    """How much longer some imports take than others; the start of Python does not count."""
    # What is compiled is written down at the first try, also where that is turned off.
    program = "import sys; sys.dont_write_bytecode = False; {}"
    best = dict.fromkeys(("pass", ours, theirs), float("inf"))
    for _ in range(tries):
        for what in best:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program.format(what)], check=True)
            best[what] = min(best[what], time.perf_counter() - start)
    return (best[ours] - best["pass"]) / (best[theirs] - best["pass"])
