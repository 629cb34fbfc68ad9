"""The table: a case for each row of what is to be reached."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tests.benchmarks import admin, floors, growth, latencies, memory, postgres_cases, workloads
from tests.benchmarks.latencies import p50, p99
from tests.benchmarks.measuring import Case, Goal, Settings, run_on
from tests.benchmarks.processes import alone
from tests.benchmarks.stores import Durability, store_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["GROUPS", "all_cases"]

MILLION = 1_000_000
# Loading pydantic is not enough to compare with: what every program with models also loads is a
# model, and what every program with anyio loads is a loop.
BARE = "import pydantic, anyio; pydantic.BaseModel"
USED = (
    "import anyio, anyio._backends._asyncio, pydantic\n"
    "class M(pydantic.BaseModel): x: int = pydantic.Field(ge=0)"
)
ALL_NAMES = "from sitq import *"


def all_cases(settings: Settings) -> list[Case]:
    """All cases, in the order of the table."""
    groups = postgres_cases.GROUPS if settings.store == "postgres" else GROUPS
    return [case for group in groups.values() for case in group(settings)]


def _rate(work: Any, durability: Durability, kind: str, *arguments: Any) -> Any:
    """Measure a coroutine function of the workloads in a fresh store."""

    def once(place: Path, loop: str) -> float:
        return float(run_on(loop, work, store_in(place, durability, kind), *arguments))

    return once


def _drains(settings: Settings) -> Iterator[Case]:
    kind, many = settings.store, settings.count(20_000)

    def floor(durability: Durability) -> Callable[[Path], float]:
        return lambda place: floors.drain(place, durability, settings.count(4_000))

    rows: tuple[tuple[Durability, int, float], ...] = (
        ("FULL", 100, 5.0),
        ("NORMAL", 100, 1.0),
        ("FULL", 10, 2.5),
    )
    for durability, concurrency, ratio in rows:
        yield Case(
            "drain",
            f"drain no-op tasks, {concurrency} at once, {durability}",
            "tasks/s",
            _rate(workloads.drain, durability, kind, many, concurrency),
            Goal(ratio=ratio),
            floor(durability),
        )


def _enqueues(settings: Settings) -> Iterator[Case]:
    kind, many = settings.store, settings.count(20_000)

    def floor(place: Path) -> float:
        return floors.insert(place, "FULL", settings.count(4_000))

    yield Case(
        "enqueue",
        "enqueue, one at a time, FULL",
        "tasks/s",
        _rate(workloads.enqueue_one, "FULL", kind, settings.count(3_000)),
        Goal(ratio=0.4),
        floor,
    )
    yield Case(
        "enqueue",
        "enqueue, 100 callers at once, FULL",
        "tasks/s",
        _rate(workloads.enqueue_at_once, "FULL", kind, many),
        Goal(ratio=3.3),
        floor,
    )
    yield Case(
        "enqueue",
        "enqueue_many, 1,000 a call, FULL",
        "tasks/s",
        _rate(workloads.enqueue_bulk, "FULL", kind, many * 2),
        Goal(figure=120_000),
        floor,
    )


def _sync(settings: Settings) -> Iterator[Case]:
    count = settings.count(3_000)

    def rate(threads: int) -> Callable[[Path, str], float]:
        return lambda place, _loop: workloads.enqueue_sync(
            store_in(place, "FULL", settings.store), count, threads
        )

    def floor(place: Path) -> float:
        return floors.insert(place, "FULL", settings.count(4_000))

    for threads, ratio in ((1, 0.75), (8, 1.0)):
        yield Case(
            "sync",
            f"SyncTaskQueue.enqueue, {threads} thread{'s'[: threads - 1]}, FULL",
            "tasks/s",
            rate(threads),
            Goal(ratio=ratio),
            floor,
            loops=("asyncio",),
        )


def _threads(settings: Settings) -> Iterator[Case]:
    count = settings.count(5_000)
    yield Case(
        "threads",
        "drain plain functions in threads, 10 at once, FULL",
        "tasks/s",
        _rate(workloads.drain, "FULL", settings.store, count, 10, workloads.nothing_in_thread),
        Goal(figure=5_000),
        lambda place: floors.drain(place, "FULL", settings.count(4_000)),
    )


def _three_commits(place: Path, settings: Settings) -> float:
    """What storing, reserving and ending a task takes at least, in ms."""
    return 1000 * (
        1 / floors.insert(place, "FULL", settings.count(500))
        + 1 / floors.drain(place, "FULL", settings.count(500))
    )


def _latencies(settings: Settings) -> Iterator[Case]:
    trips, starts = settings.count(300), max(20, int(60 * settings.scale))

    def through(work: Any, count: int, choose: Any) -> Callable[[Path, str], float]:
        def once(place: Path, loop: str) -> float:
            store = store_in(place, kind=settings.store)
            return latencies.through_a_worker(work, store, loop, count, choose)

        return once

    def here(place: Path, loop: str, pause: float = 0.005) -> float:
        store = store_in(place, kind=settings.store)
        return p50(run_on(loop, latencies.round_trips_here, store, trips, pause))

    def idle(place: Path, loop: str) -> float:
        return latencies.idle_share(store_in(place, kind=settings.store), loop, 5 * settings.scale)

    trip, late = latencies.round_trips, latencies.lateness
    at_once = partial(latencies.round_trips, pause=0)
    rows: tuple[tuple[str, Callable[[Path, str], float], float], ...] = (
        ("enqueue to result, two processes, p50", through(at_once, trips, p50), 1.5),
        ("enqueue to result, two processes, p99", through(at_once, trips, p99), 6),
        ("enqueue to result, one process, p50", partial(here, pause=0), 1),
        ("the same after 5 ms of rest, two processes, p50", through(trip, trips, p50), 1.5),
        ("the same after 5 ms of rest, two processes, p99", through(trip, trips, p99), 6),
        ("the same after 5 ms of rest, one process, p50", here, 1),
        ("start after eta, idle worker, p99", through(late, starts, p99), 10),
    )
    for name, work, most in rows:
        goal = Goal(figure=most, at_most=True)
        floor = partial(_three_commits, settings=settings)
        yield Case("latency", name, "ms", work, goal, floor)
    yield Case(
        "idle", "an idle worker", "% of a core", idle, Goal(figure=1, at_most=True), rounds=3
    )


def _growth(settings: Settings) -> Iterator[Case]:
    million, count = settings.count(MILLION), settings.count(20_000)

    def among(place: Path, queues: int, *, crowded: bool) -> str:
        store = store_in(place, kind=settings.store)
        old = million if crowded else 0
        due = settings.count(100_000) if crowded else count * 2
        growth.grow(store, finished=old, scheduled=old, due=due, queues=queues)
        return store

    for queues in (1, growth.QUEUES):
        name = "1 queue" if queues == 1 else f"{queues} queues"

        def rate(place: Path, loop: str, queues: int = queues) -> float:
            store = among(place, queues, crowded=True)
            return float(run_on(loop, growth.rate_among, store, queues, count))

        def empty(place: Path, queues: int = queues) -> float:
            store = among(place, queues, crowded=False)
            return float(run_on("asyncio", growth.rate_among, store, queues, count))

        yield Case(
            "growth",
            f"drain among 2.1 million rows in {name}, against few",
            "tasks/s",
            rate,
            Goal(ratio=0.8),
            empty,
            rounds=3,
            loops=("asyncio",),
        )


def _prune(settings: Settings) -> Iterator[Case]:
    def beside(place: Path, loop: str) -> float:
        store = store_in(place, kind=settings.store)
        return max(growth.prune_beside(store, loop, settings.count(MILLION)))

    yield Case(
        "prune",
        "longest round trip while a million rows are pruned",
        "ms",
        beside,
        floor=partial(_three_commits, settings=settings),
        rounds=3,
        loops=("asyncio",),
    )


def _crowd(settings: Settings) -> Iterator[Case]:
    count = settings.count(200_000)  # so that the start of the first one hardly counts
    shares: list[float] = []

    def rate(place: Path, loop: str) -> float:
        found, shares[:] = growth.crowd(store_in(place, kind=settings.store), loop, 4, count)
        return found

    def least(place: Path, loop: str) -> float:
        return 100 * min(growth.crowd(store_in(place, kind=settings.store), loop, 4, count)[1])

    yield Case(
        "crowd", "drain by four workers' processes, FULL", "tasks/s", rate, loops=("asyncio",)
    )
    yield Case("crowd", "smallest share of four workers", "%", least, loops=("asyncio",))


def _memory(settings: Settings) -> Iterator[Case]:
    kind, count = settings.store, settings.tasks_for_memory

    def tasks(place: Path, loop: str) -> float:
        return memory.tasks_growth(store_in(place, kind=kind), loop, count)

    def results(place: Path, loop: str, which: int) -> float:
        store = store_in(place, kind=kind)
        found = alone(run_on, loop, memory.large_results, store, settings.count(10_000))
        return float(found[which])

    def waiting(place: Path, loop: str, which: int) -> float:
        store = store_in(place, kind=kind)
        found = alone(run_on, loop, memory.waiters, store, settings.count(10_000))
        return float(found[which])

    once = ("asyncio",)
    goal = Goal(figure=10, at_most=True)
    name = f"a worker grows over {count:,} tasks by"
    yield Case("memory", name, "MiB", tasks, goal, rounds=1, loops=once)
    name = "store 10,000 results of 100 kB"
    yield Case("results", name, "MB/s", partial(results, which=0), rounds=2, loops=once)
    name = "10,000 results of 100 kB: the worker grows by"
    yield Case("results", name, "MiB", partial(results, which=1), rounds=1, loops=once)
    name = "10,000 callers wait for as many results"
    yield Case("waiters", name, "results/s", partial(waiting, which=0), loops=once)
    name = "10,000 callers who wait take"
    yield Case("waiters", name, "MiB", partial(waiting, which=1), rounds=1, loops=once)


def _imports(settings: Settings) -> Iterator[Case]:
    tries = max(3, int(10 * settings.scale))

    def ratio(ours: str, theirs: str) -> Callable[[Path, str], float]:
        return lambda _place, _loop: latencies.import_ratio(ours, theirs, tries)

    goal = Goal(figure=1.3, at_most=True)
    once = ("asyncio",)
    name = "import sitq, against importing pydantic and anyio"
    yield Case("import", name, "x", ratio("import sitq", BARE), goal, loops=once)
    name = "import all of sitq, against having a model and a loop"
    yield Case("import", name, "x", ratio(ALL_NAMES, USED), loops=once)


GROUPS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "drain": _drains,
    "enqueue": _enqueues,
    "sync": _sync,
    "threads": _threads,
    "latency": _latencies,
    "growth": _growth,
    "prune": _prune,
    "crowd": _crowd,
    "admin": admin.cases,
    "memory": _memory,
    "import": _imports,
}
