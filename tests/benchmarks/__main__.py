"""Measure sitq: ``python -m tests.benchmarks [--quick] [--loop asyncio|trio]``.

Ratios come first: each rate stands beside a floor of raw sqlite3 that was measured in the same
minute at the same durability. The machines are shared and noisy, so each figure is the median of
several rounds, with the lowest and the highest beside it.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from tests.benchmarks import floors, workloads

Rates = list[float]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--loop", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    rounds, count = (1, 2_000) if options.quick else (5, 20_000)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {options.loop}, Python {platform.python_version()},")
    print(f"SQLite {sqlite3.sqlite_version}, {platform.machine()}, medians of {rounds}\n")
    print(f"{'what':<48}{'ratio':>8}{'goal':>7}{'median':>11}{'min':>10}{'max':>10}")
    with tempfile.TemporaryDirectory() as folder:
        _rates(Path(folder), options.loop, rounds, count)
        _latencies(Path(folder), options.loop, 50 if options.quick else 500)
    _imports(3 if options.quick else 10)


def _rates(folder: Path, loop: str, rounds: int, count: int) -> None:
    numbers = iter(range(1_000_000))

    def fresh() -> Path:
        place = folder / str(next(numbers))
        place.mkdir()
        return place

    def ours(work: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
        return lambda: anyio.run(work, fresh() / "q.db", *arguments, backend=loop)

    full_drain = lambda: floors.drain(fresh(), "FULL", count // 4)  # noqa: E731
    normal_drain = lambda: floors.drain(fresh(), "NORMAL", count)  # noqa: E731
    full_insert = lambda: floors.insert(fresh(), "FULL", count // 4)  # noqa: E731
    drain = workloads.drain
    rows: list[tuple[str, float | None, Callable[[], float] | None, Callable[[], float]]] = [
        ("drain, FULL, 100 at once", 5.0, full_drain, ours(drain, "FULL", count, 100)),
        ("drain, NORMAL, 100 at once", 1.0, normal_drain, ours(drain, "NORMAL", count, 100)),
        ("drain, FULL, 10 at once", 2.5, full_drain, ours(drain, "FULL", count, 10)),
        ("enqueue one at a time, FULL", 0.4, full_insert, ours(workloads.enqueue_one, count // 10)),
        ("enqueue, 100 callers, FULL", 3.3, full_insert, ours(workloads.enqueue_at_once, count)),
        (
            "enqueue_many, 1,000 a call (goal 120,000/s)",
            None,
            None,
            ours(workloads.enqueue_bulk, count * 2),
        ),
        (
            "plain functions in threads (goal 5,000/s)",
            None,
            None,
            ours(drain, "FULL", count // 4, 10, workloads.nothing_in_thread),
        ),
    ]
    for name, goal, floor, work in rows:
        rates: Rates = []
        ratios: Rates = []
        for _ in range(rounds):
            # The floor is measured anew beside each round: the machine may slow down meanwhile.
            base = floor() if floor else None
            rates.append(work())
            if base:
                ratios.append(rates[-1] / base)
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        middle = statistics.median(rates)
        target = "" if goal is None else f"{goal:g}"
        spread = f"{min(rates):>10,.0f}{max(rates):>10,.0f}"
        print(f"{name:<48}{ratio:>8}{target:>7}{middle:>11,.0f}{spread}", flush=True)


def _latencies(folder: Path, loop: str, count: int) -> None:
    path = folder / "idle.db"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.idle_worker", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdin is not None
        worker.stdout.readline()
        time.sleep(5)
        worker.stdin.write("\n")
        worker.stdin.flush()
        idle = worker.stdout.readline().strip()
        trips = anyio.run(workloads.round_trips, path, count, 0.005, backend=loop)
        late = anyio.run(workloads.lateness, path, count // 5, backend=loop)
        worker.stdin.close()
    print()
    _quantiles("enqueue to result, two processes, ms (1.5 / 6)", trips)
    _quantiles("start after eta, ms (p99 10)", late)
    print(f"{'an idle worker, % of a core (1)':<48}{idle:>8}")


def _quantiles(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    print(f"{name:<48}  p50 {p50:.2f}  p99 {p99:.2f}  max {ordered[-1]:.2f}")


def _imports(rounds: int) -> None:
    def seconds(what: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {what}"], check=True)
        return time.perf_counter() - start

    bare = statistics.median(seconds("sys") for _ in range(rounds))
    base = statistics.median(seconds("pydantic, anyio; pydantic.BaseModel") for _ in range(rounds))
    ours = statistics.median(seconds("sitq") for _ in range(rounds))
    ratio = (ours - bare) / (base - bare)
    print(f"{'import sitq / importing pydantic and anyio (1.3)':<48}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
