"""The table of the PostgreSQL store: each rate beside a floor of raw asyncpg in the same round."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import admin, growth, latencies, postgres_floors, workloads
from tests.benchmarks.latencies import p50, p99
from tests.benchmarks.measuring import Case, Goal, Settings, run_on
from tests.benchmarks.stores import store_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["GROUPS"]

KIND = "postgres"
MILLION = 1_000_000
ONCE = ("asyncio",)


def _rate(work: Callable[..., object], *arguments: object) -> Callable[[Path, str], float]:
    """Measure a coroutine function of the workloads in a fresh store."""

    def once(place: Path, loop: str) -> float:
        return float(run_on(loop, work, store_in(place, kind=KIND), *arguments))

    return once


def _drains(settings: Settings) -> Iterator[Case]:
    many, few = settings.count(20_000), settings.count(2_000)
    for concurrency, goal in ((100, Goal(figure=20_000)), (10, Goal())):
        yield Case(
            "drain",
            f"drain no-op tasks, {concurrency} at once",
            "tasks/s",
            _rate(workloads.drain, many, concurrency),
            goal,
            lambda _: postgres_floors.drain(few),
        )


def _enqueues(settings: Settings) -> Iterator[Case]:
    many, few = settings.count(20_000), settings.count(3_000)
    rows: tuple[tuple[str, Callable[..., float], Goal, Callable[[int], float], int], ...] = (
        (
            "enqueue, one at a time",
            _rate(workloads.enqueue_one, few),
            Goal(ratio=0.6),
            postgres_floors.insert,
            few,
        ),
        (
            "enqueue, 100 callers at once",
            _rate(workloads.enqueue_at_once, many),
            Goal(),
            postgres_floors.insert,
            few,
        ),
        (
            "enqueue_many, 1,000 a call, against executemany",
            _rate(workloads.enqueue_bulk, many * 2),
            Goal(figure=100_000),
            postgres_floors.insert_many,
            many,
        ),
    )
    for name, work, goal, floor, count in rows:
        yield Case(
            "enqueue",
            name,
            "tasks/s",
            work,
            goal,
            lambda _, floor=floor, count=count: floor(count),  # type: ignore[misc]
        )


def _three_commits(_: Path, settings: Settings) -> float:
    """What storing, reserving and ending a task takes at least, in ms."""
    count = settings.count(300)
    return 1000 * (1 / postgres_floors.insert(count) + 1 / postgres_floors.drain(count))


def _latencies(settings: Settings) -> Iterator[Case]:
    trips, starts = settings.count(300), max(20, int(60 * settings.scale))

    def through(work: object, count: int, choose: object) -> Callable[[Path, str], float]:
        def once(place: Path, loop: str) -> float:
            store = store_in(place, kind=KIND)
            return latencies.through_a_worker(work, store, loop, count, choose)  # type: ignore[arg-type]

        return once

    def here(place: Path, loop: str) -> float:
        return p50(run_on(loop, latencies.round_trips_here, store_in(place, kind=KIND), trips))

    def idle(place: Path, loop: str) -> float:
        return latencies.idle_share(store_in(place, kind=KIND), loop, 5 * settings.scale)

    trip, late = latencies.round_trips, latencies.lateness
    rows: tuple[tuple[str, Callable[[Path, str], float], float | None], ...] = (
        ("enqueue to result after 5 ms of rest, two processes, p50", through(trip, trips, p50), 3),
        ("the same, p99", through(trip, trips, p99), None),
        ("the same, one process, p50", here, None),
        ("start after eta, idle worker, p99", through(late, starts, p99), None),
    )
    for name, work, most in rows:
        goal = Goal(figure=most, at_most=True)
        floor = partial(_three_commits, settings=settings)
        yield Case("latency", name, "ms", work, goal, floor, rounds=3)
    yield Case("idle", "an idle worker", "% of a core", idle, rounds=3)


def _growth(settings: Settings) -> Iterator[Case]:
    million, count = settings.count(MILLION), settings.count(20_000)

    def among(place: Path, loop: str, *, crowded: bool) -> float:
        store = store_in(place, kind=KIND)
        old = million if crowded else 0
        growth.grow(store, finished=old, scheduled=old, due=count * 2)
        return float(run_on(loop, growth.rate_among, store, 1, count))

    yield Case(
        "growth",
        "drain beside a million final rows and a million scheduled ones, against none",
        "tasks/s",
        partial(among, crowded=True),
        Goal(ratio=0.8),
        partial(among, loop="asyncio", crowded=False),
        rounds=3,
        loops=ONCE,
    )


def _crowd(settings: Settings) -> Iterator[Case]:
    count = settings.count(40_000)

    def crowd(place: Path, loop: str, workers: int) -> tuple[float, list[float]]:
        return growth.crowd(store_in(place, kind=KIND), loop, workers, count)

    yield Case(
        "crowd",
        "drain by four workers' processes, against one",
        "tasks/s",
        lambda place, loop: crowd(place, loop, 4)[0],
        Goal(ratio=1.5),
        lambda place: crowd(place, "asyncio", 1)[0],
        loops=ONCE,
    )
    yield Case(
        "crowd",
        "smallest share of four workers",
        "%",
        lambda place, loop: 100 * min(crowd(place, loop, 4)[1]),
        loops=ONCE,
    )


GROUPS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "drain": _drains,
    "enqueue": _enqueues,
    "latency": _latencies,
    "growth": _growth,
    "crowd": _crowd,
    "admin": admin.cases,
}
