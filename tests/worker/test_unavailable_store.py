"""The worker beside a store that fails on demand: patience, one warning, nothing lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sitq import (
    BackendBusyError,
    BackendError,
    RetryPolicy,
    TaskQueue,
    TaskStatus,
    Worker,
    call,
    current_task,
)
from sitq.backends.memory import MemoryBackend
from sitq.models import LeaseState, Outcome, Reservation
from sitq.testing import FakeClock, FaultyBackend
from tests.worker.gate import until

pytestmark = pytest.mark.anyio

BUSY = BackendBusyError("finish: somebody else holds it")
BROKEN = BackendError("finish: it makes no sense")


class Gate:
    entered: anyio.Event
    opened: anyio.Event
    left: list[str]


@pytest.fixture(autouse=True)
def gate() -> None:
    Gate.left = []


async def number_of(value: int) -> int:
    return value


async def held() -> str:
    Gate.entered.set()
    try:
        await Gate.opened.wait()
    except BaseException:
        Gate.left.append("cancelled")
        raise
    Gate.left.append("finished")
    return current_task().id


@asynccontextmanager
async def working(backend: Any, **options: Any) -> AsyncIterator[Worker]:
    Gate.entered, Gate.opened = anyio.Event(), anyio.Event()
    worker = Worker(backend, **options)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        yield worker
        await worker.stop()


@pytest.mark.parametrize("operation", ["reserve", "sweep", "finish", "renew"])
@pytest.mark.parametrize("error", [BUSY, BROKEN, RuntimeError("a bug")])
async def test_a_failing_operation_is_tried_again_and_logged_once(
    operation: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    backend = FaultyBackend(MemoryBackend())
    with caplog.at_level(logging.INFO):
        async with TaskQueue(backend) as queue, working(backend, lease=1.0, poll_interval=0.05):
            backend.fail(operation, times=3, error=error)
            held_id = await queue.enqueue(held)
            await Gate.entered.wait()
            if operation != "finish":  # that one is not asked for before the end
                await until(lambda: "again" in caplog.text)
            Gate.opened.set()
            result = await queue.get_result(held_id, timeout=20)
            assert result is not None
            assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 1)
            await until(lambda: "again" in caplog.text)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, caplog.text
    assert str(error) in warnings[0].getMessage()


async def test_one_outcome_that_cannot_be_stored_does_not_hold_up_the_others() -> None:
    """A group that fails for no passing reason is written one by one."""

    class Picky(FaultyBackend):
        async def finish(self, outcomes: Any) -> list[bool]:
            if any(outcome.value == poison for outcome in outcomes):
                raise BROKEN
            return await super().finish(outcomes)

    poison = b"\x07"  # 7 in msgpack
    backend = Picky(MemoryBackend())
    async with TaskQueue(backend) as queue, working(backend, shutdown_timeout=0) as worker:
        ids = await queue.enqueue_many([call(number_of, value) for value in range(20)])
        others = [task_id for value, task_id in enumerate(ids) if value != 7]
        for task_id in others:
            assert await queue.get_result(task_id, timeout=20) is not None
        assert await queue.get_result(ids[7], timeout=0) is None
        poison = b"none any more"
        result = await queue.get_result(ids[7], timeout=20)
        assert result is not None
        assert queue.deserialize_result(result) == 7
        await worker.stop()


async def test_a_reply_that_is_lost_changes_nothing_twice() -> None:
    """An outcome whose acceptance was not received is sent again, and refused by its epoch."""
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue, working(backend):
        backend.fail("finish", error=BUSY, after=True)
        result = await queue.get_result(await queue.enqueue(number_of, 3), timeout=20)
        assert result is not None
        assert queue.deserialize_result(result) == 3
        assert result.attempts == 1


async def test_a_drain_says_that_the_store_has_failed() -> None:
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue:
        await queue.enqueue(number_of, 1)
        backend.fail("reserve", error=BROKEN)
        with pytest.raises(BackendError, match="makes no sense"):
            await Worker(backend).drain()
        assert await Worker(backend).drain() == 1


async def test_a_task_whose_lease_cannot_be_renewed_is_given_up_before_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker cancels it by its own monotonic clock, and hands it back: that is no crash."""
    clock = FakeClock()
    backend = FaultyBackend(MemoryBackend(clock=clock))
    async with TaskQueue(backend) as queue, working(backend, lease=30.0):
        backend.fail("renew", times=1000, error=BUSY)
        backend.fail("finish", times=1000, error=BUSY)
        task_id = await queue.enqueue(held)
        await Gate.entered.wait()
        with caplog.at_level(logging.WARNING):
            for _ in range(47):  # 23.5 s: the margin is not reached
                clock.advance(0.5)
                await anyio.wait_all_tasks_blocked()
            assert Gate.left == []
            for _ in range(3):
                clock.advance(0.5)
                await anyio.wait_all_tasks_blocked()
            await until(lambda: Gate.left)
        assert Gate.left == ["cancelled"]
        (lost,) = [each for each in caplog.records if "is lost" in each.getMessage()]
        fields = vars(lost)
        assert (fields["task_id"], fields["epoch"], fields["attempt"]) == (task_id, 1, 1)
        assert len(fields["worker_id"]) == 16
        assert (await queue.get_task(task_id)).status is TaskStatus.IN_PROGRESS
        backend.heal()
        Gate.opened.set()
        assert await queue.get_result(task_id, timeout=None) is not None
        info = await queue.get_task(task_id)
        assert (info.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)


async def test_a_lease_that_was_taken_over_ends_the_attempt() -> None:
    """A heartbeat that hears of it cancels the function; its outcome is not even sent."""
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue, working(backend, lease=0.3):
        task_id = await queue.enqueue(held)
        await Gate.entered.wait()
        (info,) = await backend.get_tasks([task_id])
        assert info is not None
        memory = backend._backend
        assert isinstance(memory, MemoryBackend)
        row = memory._rows.by_id[task_id]
        memory._rows.by_id[task_id] = type(row)(**{**vars(row), "epoch": row.epoch + 1})
        await until(lambda: Gate.left)
        assert Gate.left == ["cancelled"]
        keeper = backend.lease_keeper()
        lease = (info.task_id, row.epoch)
        assert keeper.renew([type(memory_lease(row))(*lease)], 1.0) == [LeaseState.LOST]
        assert (await queue.get_task(task_id)).status is TaskStatus.IN_PROGRESS


def memory_lease(row: Any) -> Any:
    from sitq.models import Lease

    return Lease(row.task.id, row.epoch)


async def test_fast_tasks_are_reserved_ahead_and_run_once_each() -> None:
    backend = MemoryBackend()
    most = 0

    class Watching(FaultyBackend):
        async def reserve(self, worker: str, queues: Any, limit: int, lease: float) -> Any:
            nonlocal most
            most = max(most, limit)
            return await super().reserve(worker, queues, limit, lease)

    watching = Watching(backend)
    async with TaskQueue(watching) as queue:
        ids = await queue.enqueue_many([call(number_of, value) for value in range(300)])
        assert await Worker(watching, max_concurrency=2).drain() == 300
        results = [await queue.get_result(task_id, timeout=0) for task_id in ids]
        assert [result and result.attempts for result in results] == [1] * 300
    assert most > 2


async def test_what_was_reserved_ahead_of_a_slow_task_is_handed_back() -> None:
    """Fast tasks make the worker reach ahead; behind a slow one they wait for no more than that."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([call(number_of, value) for value in range(50)])
        await queue.enqueue(held)
        waiting = await queue.enqueue_many([call(number_of, value) for value in range(5)])
        async with working(backend, max_concurrency=1) as worker:
            await Gate.entered.wait()
            await anyio.wait_all_tasks_blocked()
            infos = [await queue.get_task(task_id) for task_id in waiting]
            assert {info.status for info in infos} == {TaskStatus.IN_PROGRESS}
            for _ in range(4):
                clock.advance(0.5)
                await anyio.wait_all_tasks_blocked()
            infos = [await queue.get_task(task_id) for task_id in waiting]
            assert {(info.status, info.attempts) for info in infos} == {(TaskStatus.PENDING, 0)}
            Gate.opened.set()
            for task_id in waiting:
                assert await queue.get_result(task_id, timeout=None) is not None
            await worker.stop()


async def test_a_retry_is_due_after_its_delay_by_the_clock() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    policy = RetryPolicy(max_attempts=2, delay=60, jitter=0)
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(retry=policy).enqueue(fail_once)
        worker = Worker(backend)
        assert await worker.drain() == 1
        clock.advance(59.9)
        assert await worker.drain() == 0
        info = await queue.get_task(task_id)
        assert (info.status, info.error) == (TaskStatus.PENDING, "ConnectionError: once")
        clock.advance(0.1)
        assert await worker.drain() == 1
        assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS


async def fail_once() -> None:
    if current_task().attempt == 1:
        raise ConnectionError("once")


class Silent(MemoryBackend):
    """A store that answers no more once an outcome comes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = anyio.Event()

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self.asked.set()
        await anyio.sleep_forever()
        raise AssertionError(outcomes)


class Unsure(MemoryBackend):
    """A store that cannot tell whether more is due."""

    async def reserve(
        self, worker_id: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        if not limit:
            raise BROKEN
        return await super().reserve(worker_id, queues, limit, lease)


async def test_a_drain_says_that_the_store_has_failed_at_its_last_look() -> None:
    with pytest.raises(BackendError, match="makes no sense"):
        await Worker(Unsure()).drain()


async def test_a_drain_whose_outcomes_cannot_be_written_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sitq.worker._worker_run._LAST_WRITES", 0.1)
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        backend.fail("finish", times=100_000, error=BUSY)
        await queue.enqueue(held)
        Gate.entered, Gate.opened = anyio.Event(), anyio.Event()
        worker = Worker(backend)
        group.start_soon(worker.drain)
        await Gate.entered.wait()
        Gate.opened.set()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(10):
            await worker.stop()


class Meeting:
    """Attempts that wait for each other, so that they end together."""

    expected = 5
    complete: anyio.Event


async def meet(value: int) -> int:
    Meeting.expected -= 1
    if not Meeting.expected:
        Meeting.complete.set()
    await Meeting.complete.wait()
    return value


class OneByOne(MemoryBackend):
    """A store that takes outcomes only one by one, and calls a function before the first."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        self._before: list[Callable[[], object]] = [before]

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        if len(outcomes) > 1:
            raise BROKEN
        if self._before:
            self._before.pop()()
            await anyio.lowlevel.checkpoint()
        return await super().finish(outcomes)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_outcome_is_kept_when_asyncio_cancels_the_write_of_another() -> None:
    others = asyncio.all_tasks()

    def cancel_all() -> None:  # as the end of asyncio.run() does
        for task in asyncio.all_tasks() - others:
            task.cancel()

    Meeting.expected, Meeting.complete = 5, anyio.Event()
    backend = OneByOne(cancel_all)
    async with TaskQueue(backend) as queue:
        task_ids = await queue.enqueue_many([call(meet, value) for value in range(5)])
        await asyncio.gather(asyncio.create_task(Worker(backend).drain()), return_exceptions=True)
        for value, task_id in enumerate(task_ids):
            assert await queue.result(task_id, timeout=0) == value


@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_a_store_that_does_not_answer_holds_up_an_end_for_a_while_only(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sitq.worker._worker_run._LAST_WRITES", 0.2)
    backend = Silent()
    worker = Worker(backend)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        await group.start(worker.start)
        await queue.enqueue(print)
        await backend.asked.wait()
        with anyio.fail_after(10):
            if way == "stop":
                await worker.stop()
            group.cancel_scope.cancel()
    assert "ends with outcomes that could not be stored" in caplog.text
