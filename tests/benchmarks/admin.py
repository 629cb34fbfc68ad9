"""What looking into a large store costs, and what it costs the worker that drains the store."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from sitq import Admin, TaskFilter, TaskQueue
from tests.benchmarks import workloads
from tests.benchmarks.admin_rows import FUNCTION, Rows, grow
from tests.benchmarks.measuring import Case, Goal, Settings, run_on
from tests.benchmarks.processes import worker
from tests.benchmarks.stores import open_store, store_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.processes import Process

__all__ = ["Looks", "cases", "filters", "look_around", "p95", "rates"]

PAGES = 3
# An admin on a screen: so many seconds between two looks.
GLANCE = 1.0
# So many tasks more than the store has at first are due, so that the worker never waits.
AHEAD = 50_000
FINAL, OPEN = 4_800_000, 200_000
MOST = 150  # milliseconds
STATUSES: tuple[Any, ...] = (
    None,
    "pending",
    "scheduled",
    "due",
    "retrying",
    "in_progress",
    "success",
    "failed",
    "cancelled",
    "expired",
)


class Looks(NamedTuple):
    """Milliseconds of each call, by what was asked for."""

    pages: dict[str, list[float]]
    counts: dict[str, list[float]]
    overviews: list[float]


def p95(times: list[float]) -> float:
    """The time that one in twenty exceeds."""
    return sorted(times)[min(len(times) - 1, len(times) * 95 // 100)]


def filters(rows: Rows) -> Iterator[tuple[str, TaskFilter]]:
    """Each status, alone and with each kind of condition; and conditions that nothing meets."""
    middle = datetime.fromtimestamp((rows.first_at + rows.last_at) / 2_000_000, UTC)
    hour = {"enqueued_after": middle, "enqueued_before": middle + timedelta(hours=1)}
    conditions: dict[str, dict[str, Any]] = {
        "": {},
        "queue": {"queue": "q42"},
        "function": {"function": FUNCTION},
        "queue and function": {"queue": "q42", "function": FUNCTION},
        "error": {"error": "ValueError"},
        "priority": {"priority": 10},
        "an hour": hour,
        "finished in an hour": {
            "finished_after": middle,
            "finished_before": middle + timedelta(hours=1),
        },
        "eta": {"eta_after": datetime.now(UTC) + timedelta(days=1)},
        "no such queue": {"queue": "nothing"},
        "no such function": {"function": "nothing:nothing"},
        "no such error": {"error": "NothingError"},
        "no such key": {"unique_key": "nothing"},
        "an hour before all": {
            "enqueued_before": datetime.fromtimestamp(rows.first_at / 1_000_000, UTC)
        },
    }
    for status in STATUSES:
        for name, condition in conditions.items():
            yield f"{status or 'any'} {name}".strip(), TaskFilter(status=status, **condition)
    yield "worker", TaskFilter(worker="worker-1")


async def look_around(store: str, loop: str, rows: Rows, rounds: int) -> Looks:
    """Ask for all pages, counts and overviews, some times, while a worker drains the store."""
    looks = Looks(defaultdict(list), defaultdict(list), [])
    async with _draining(store, loop) as drain, Admin(open_store(store)) as admin:
        await admin.overview()  # which connects
        for _ in range(rounds):
            for name, where in filters(rows):
                await drain.top_up()
                await _look_at(admin, name, where, looks)
            for _ in range(10):
                await drain.top_up()
                start = time.perf_counter()
                await admin.overview()
                looks.overviews.append(_since(start))
    return looks


async def _look_at(admin: Admin, name: str, where: TaskFilter, looks: Looks) -> None:
    cursor = None
    for number in range(PAGES):
        start = time.perf_counter()
        page = await admin.list_tasks(where, limit=100, cursor=cursor)
        looks.pages[f"{name}, page {number + 1}"].append(_since(start))
        cursor = page.cursor
        if cursor is None:
            break
    start = time.perf_counter()
    await admin.count_tasks(where)
    looks.counts[name].append(_since(start))


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


async def rates(store: str, loop: str, rounds: int, seconds: float) -> tuple[float, float]:
    """Tasks that a worker drains a second alone, and its rate while an admin looks, in turns."""
    alone, busy = [], []
    async with _draining(store, loop) as drain, Admin(open_store(store)) as admin:
        await admin.overview()  # which connects
        for _ in range(rounds):
            await drain.top_up()
            alone.append(await drain.rate(seconds))
            await drain.top_up()
            async with anyio.create_task_group() as group:
                group.start_soon(_glance, admin)
                busy.append(await drain.rate(seconds))
                group.cancel_scope.cancel()
    return statistics.median(alone), statistics.median(busy)


async def _glance(admin: Admin) -> None:
    """Look as a screen does that shows the failures and the overview, and is reloaded."""
    while True:
        await admin.overview()
        page = await admin.list_tasks(TaskFilter(status="failed"))
        await admin.list_tasks(TaskFilter(status="failed"), cursor=page.cursor)
        await admin.list_tasks(TaskFilter(status="success", queue="q42"))
        await anyio.sleep(GLANCE)


class _Drain:
    """A worker that drains all queues, and what it has drained."""

    def __init__(self, process: Process, queue: TaskQueue) -> None:
        self._process = process
        self._queue = queue
        self._refilled = 0

    async def rate(self, seconds: float) -> float:
        """Tasks that it begins a second."""
        before, start = await self._begun(), time.perf_counter()
        await anyio.sleep(seconds)
        return (await self._begun() - before) / (time.perf_counter() - start)

    async def top_up(self) -> None:
        """Enqueue as many tasks as were begun since the last time."""
        begun = await self._begun()
        await workloads.fill(self._queue, begun - self._refilled, workloads.counted)
        self._refilled = begun

    async def _begun(self) -> int:
        return (await anyio.to_thread.run_sync(self._process.ask))[1]


@asynccontextmanager
async def _draining(store: str, loop: str) -> AsyncIterator[_Drain]:
    with worker(store, loop, "*") as process:
        process.begin()
        async with TaskQueue(open_store(store)) as queue:
            await workloads.fill(queue, AHEAD, workloads.counted)
            yield _Drain(process, queue)


def cases(settings: Settings) -> Iterator[Case]:
    """What an admin waits for beside five million tasks, and what a worker loses meanwhile.

    The store is made once: the first case measures for all.
    """
    measured: dict[str, float] = {}

    def measure(place: Path, loop: str) -> None:
        store = store_in(place, kind=settings.store)
        rows = grow(store, settings.count(FINAL), settings.count(OPEN))
        looks = run_on(loop, look_around, store, loop, rows, 1 if settings.scale < 1 else 3)
        pages = [time for times in looks.pages.values() for time in times]
        measured["page"] = p95(pages)
        measured["slowest"] = max(map(statistics.median, looks.pages.values()))
        measured["count"] = p95([time for times in looks.counts.values() for time in times])
        measured["overview"] = p95(looks.overviews)
        rounds, seconds = (1, 1.0) if settings.scale < 1 else (7, 3.0)
        measured["alone"], measured["busy"] = run_on(loop, rates, store, loop, rounds, seconds)

    def figure(name: str) -> Callable[[Path, str], float]:
        def once(place: Path, loop: str) -> float:
            if not measured:
                measure(place, loop)
            return measured[name]

        return once

    def alone(place: Path) -> float:
        return figure("alone")(place, "asyncio")

    goal, once = Goal(figure=MOST, at_most=True), ("asyncio",)
    among = "among five million tasks, while a worker drains"
    for name, text in (
        ("page", f"a page of 100 {among}, p95 of all filters"),
        ("slowest", "the slowest of these filters, p50"),
        ("count", f"a count {among}, p95 of all filters"),
        ("overview", f"the overview {among}, p95"),
    ):
        yield Case("admin", text, "ms", figure(name), goal, rounds=1, loops=once)
    text = "drain while an admin looks, against alone"
    share = Goal(ratio=0.97)
    yield Case("admin", text, "tasks/s", figure("busy"), share, alone, rounds=1, loops=once)
