"""A wall clock that jumps by an hour: nothing starts early, hangs, or is accepted twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker, current_task
from sitq.clock import SystemClock
from tests.faults import programs
from tests.faults.processes import query

pytestmark = pytest.mark.anyio

HOUR = 3600.0


class JumpingClock(SystemClock):
    """The system's clock, set wrong by so many seconds; its monotonic side knows nothing of it."""

    __slots__ = ("ahead",)

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead)


STARTS: list[tuple[str, int]] = []
GATE: dict[str, anyio.Event] = {}


async def held() -> int:
    """Note the start, and wait for the gate."""
    STARTS.append((current_task().id, programs.epoch()))
    await GATE["open"].wait()
    return programs.epoch()


async def quick() -> int:
    """Note the start."""
    STARTS.append((current_task().id, programs.epoch()))
    return programs.epoch()


@pytest.fixture(autouse=True)
def fresh() -> None:
    STARTS.clear()
    GATE["open"] = anyio.Event()


async def until(fact: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110 - a fact of another process or thread
            await anyio.sleep(0.01)


@asynccontextmanager
async def running(
    path: Path, clock: JumpingClock, workers: int, lease: float
) -> AsyncIterator[TaskQueue]:
    """A queue and workers that share a clock and a file."""
    processes = [
        Worker(SQLiteBackend(path, clock=clock), lease=lease, max_crashes=1000)
        for _ in range(workers)
    ]
    async with TaskQueue(SQLiteBackend(path, clock=clock)) as queue:
        async with anyio.create_task_group() as group:
            for worker in processes:
                await group.start(worker.start)
            yield queue
            for worker in processes:
                await worker.stop()


async def test_a_jump_forward_may_cost_a_reclaim_and_never_accepts_two_outcomes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "q.db", JumpingClock()
    async with running(path, clock, workers=2, lease=30.0) as queue:
        task_id = await queue.enqueue(held)
        await until(lambda: len(STARTS) == 1)
        clock.ahead = HOUR
        await until(lambda: len(STARTS) == 2)
        GATE["open"].set()
        result = await queue.get_result(task_id, timeout=20)
    assert result is not None
    assert queue.deserialize_result(result) == 2
    assert [epoch for _, epoch in STARTS] == [1, 2]
    found = query(path, "SELECT status, epoch, attempts, crashes FROM tasks")
    assert found == [("success", 2, 1, 1)]
    assert "lease" in caplog.text  # the first one was told that its outcome came too late


async def test_a_jump_back_leaves_a_running_task_its_lease(tmp_path: Path) -> None:
    path, clock = tmp_path / "q.db", JumpingClock()
    async with running(path, clock, workers=2, lease=2.0) as queue:
        task_id = await queue.enqueue(held)
        await until(lambda: len(STARTS) == 1)
        clock.ahead = -HOUR
        # By the new clock the lease would last for an hour; a heartbeat makes it short again.
        soon = "SELECT count(*) FROM leases WHERE ends_at < (SELECT started_at FROM tasks)"
        await until(lambda: query(path, soon) == [(1,)])
        GATE["open"].set()
        assert await queue.get_result(task_id, timeout=20) is not None
    assert [epoch for _, epoch in STARTS] == [1]
    found = query(path, "SELECT status, epoch, attempts, crashes FROM tasks")
    assert found == [("success", 1, 1, 0)]


async def test_an_eta_is_met_by_the_clock_as_it_is_set_now(tmp_path: Path) -> None:
    path, clock = tmp_path / "q.db", JumpingClock()
    async with running(path, clock, workers=1, lease=30.0) as queue:
        later = await queue.options(delay=HOUR / 2).enqueue(quick)
        clock.ahead = -HOUR
        # What is enqueued now is due now, even by a clock that was set back.
        now = await queue.enqueue(quick)
        assert await queue.get_result(now, timeout=20) is not None
        assert (await queue.get_task(later)).status is TaskStatus.PENDING
        assert await queue.get_result(later, timeout=0.2) is None
        clock.ahead = HOUR
        assert await queue.get_result(later, timeout=20) is not None
    assert [task_id for task_id, _ in STARTS] == [now, later]


async def test_a_clock_that_jumps_all_the_time_loses_and_hangs_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path, clock = tmp_path / "q.db", JumpingClock()
    ids: list[str] = []
    async with running(path, clock, workers=2, lease=0.6) as queue:
        for _ in range(60):
            clock.ahead += chance.choice([-HOUR, HOUR])
            for _ in range(3):
                delayed = queue.options(delay=chance.uniform(0, 0.05))
                ids += [await delayed.enqueue(quick)]
            await anyio.sleep(0.01)
        clock.ahead = 100 * HOUR  # by now, all is due
        for task_id in ids:
            assert await queue.get_result(task_id, timeout=20) is not None
    assert query(path, "SELECT count(*) FROM tasks WHERE started_at < eta") == [(0,)]
    found = query(path, "SELECT id, status, epoch, attempts FROM tasks ORDER BY seq")
    assert [row[0] for row in found] == ids
    assert {(row[1], row[3]) for row in found} == {("success", 1)}
    assert set(Counter(STARTS).values()) == {1}
    last = dict(sorted(STARTS))
    assert {task_id: row[2] for task_id, row in zip(ids, found, strict=True)} == last
