"""What a worker has reserved ahead neither gets stuck nor is held back, whatever is in front."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker, call, current_task
from sitq.backends.memory import MemoryBackend
from sitq.models import Outcome
from sitq.testing import FakeClock
from tests.sqlite.samples import locked
from tests.worker.gate import until

pytestmark = pytest.mark.anyio

STARTED: list[str] = []
RELEASED = threading.Event()


async def quick() -> None:
    """Be so short that the next ones are reserved ahead."""


async def block(seconds: float) -> None:
    await anyio.sleep(0.1)  # a reservation that is under way comes in
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose


async def mark(name: str) -> float | None:
    STARTED.append(name)
    deadline = current_task().deadline
    return None if deadline is None else (deadline - datetime.now(UTC)).total_seconds()


def hold_a_thread() -> None:
    RELEASED.wait(20)


async def forever() -> None:
    await anyio.sleep_forever()


async def see(path: str, task_id: str) -> bool:
    """Wait for another task, which may be reserved behind this one."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        return await queue.get_result(task_id, 15) is not None


async def started(queue: TaskQueue, task_id: str) -> None:
    with anyio.fail_after(20):
        while (await queue.get_task(task_id)).status is TaskStatus.PENDING:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def at_rest(worker: Worker) -> None:
    """Return once a worker runs nothing."""
    with anyio.fail_after(20):
        while (run := worker._run_state) and run._pool._running:  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.fixture(autouse=True)
def forget() -> None:
    STARTED.clear()
    RELEASED.clear()


async def test_a_waiting_task_starts_once_an_abandoned_thread_ends(
    tmp_path: Path,
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([call(quick)] * 100)
        late = await queue.options(timeout=0.05).enqueue(hold_a_thread)
        ids = await queue.enqueue_many([call(quick)] * 3)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(Worker(backend, max_concurrency=1).drain)
                assert await queue.get_result(late) is not None
                RELEASED.set()
        infos = [await queue.get_task(task_id) for task_id in ids]
    assert {info.status for info in infos} == {TaskStatus.SUCCESS}


@pytest.mark.parametrize("way", ["start", "drain"])
async def test_what_waits_behind_a_slow_task_is_left_to_other_workers(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue_many([call(quick)] * 100)
        behind = await queue.options(priority=-1).enqueue(quick)
        first = await queue.enqueue(see, str(path), behind)
        async with anyio.create_task_group() as group:
            mine = Worker(SQLiteBackend(path), max_concurrency=1)
            group.start_soon(getattr(mine, way))
            await started(queue, first)
            group.start_soon(Worker(SQLiteBackend(path), tasks=[quick]).start)
            result = await queue.get_result(first, 20)
            group.cancel_scope.cancel()
    assert result is not None
    assert queue.deserialize_result(result)


async def test_a_task_that_expired_while_another_blocked_the_loop_does_not_start(
    tmp_path: Path,
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([call(quick)] * 100)
        await queue.enqueue(block, 1.5)
        soon = datetime.now(UTC) + timedelta(seconds=1)
        expiring = await queue.options(expires_at=soon).enqueue(mark, "expired")
        timed = await queue.options(timeout=0.5).enqueue(mark, "timed")
        begun = await Worker(backend, max_concurrency=1).drain()
        result = await queue.get_result(timed, 20)
        assert result is not None
        left = queue.deserialize_result(result)
        await backend.sweep(max_crashes=3)
        assert (await queue.get_task(expiring)).status is TaskStatus.EXPIRED
    assert STARTED == ["timed"]
    assert begun == 102  # what was handed back unbegun does not count
    assert left is not None
    assert 0 < left <= 0.5  # counted from the start of the attempt


@pytest.mark.parametrize("way", ["start", "drain"])
async def test_a_lease_is_given_up_in_time_also_while_a_sweep_waits_for_the_store(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "q.db"
    ended: list[float] = []
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.options(result_ttl=0.3).enqueue(quick)  # makes a sweep due
        task_id = await queue.enqueue(forever)
        async with anyio.create_task_group() as group:
            worker = Worker(SQLiteBackend(path), lease=3.0)
            group.start_soon(getattr(worker, way))
            await started(queue, task_id)
            with locked(path):
                begun = time.monotonic()
                await at_rest(worker)
                ended.append(time.monotonic() - begun)
            group.cancel_scope.cancel()
    assert ended[0] < 3.0, ended


async def test_a_worker_stops_at_once_though_all_threads_of_the_program_are_busy(
    tmp_path: Path,
) -> None:
    limiter = to_thread.current_default_thread_limiter()
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, tasks=[quick])
        await group.start(worker.start)
        assert await queue.get_result(await queue.enqueue(quick), 20) is not None
        borrowers = [object() for _ in range(int(limiter.available_tokens))]
        for borrower in borrowers:
            limiter.acquire_on_behalf_of_nowait(borrower)
        try:
            with anyio.fail_after(20):
                await worker.stop()
        finally:
            for borrower in borrowers:
                limiter.release_on_behalf_of(borrower)


class HeldOutcomes(MemoryBackend):
    """A store that takes no outcome before it is told to."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.released = anyio.Event()

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        await self.released.wait()
        return await super().finish(outcomes)


async def test_what_is_not_stored_beside_a_possible_killer_is_bounded_as_what_runs() -> None:
    clock = FakeClock()
    backend = HeldOutcomes(clock)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        ids = await queue.enqueue_many([call(mark, "again")] * 20)
        await backend.reserve("killed", ["default"], 20, 1.0)
        clock.advance(1.0)
        assert (await backend.sweep(max_crashes=3)).reclaimed == 20
        worker = Worker(backend, max_concurrency=4)
        await group.start(worker.start)
        await until(lambda: STARTED)
        await anyio.wait_all_tasks_blocked()
        assert len(STARTED) == 4
        backend.released.set()
        for task_id in ids:
            assert await queue.get_result(task_id, 20) is not None
        assert len(STARTED) == 20
        await worker.stop()
