"""What a worker says of itself to its store, and the orders that it obeys."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

import sitq
from sitq import Admin, SQLiteBackend, TaskFilter, TaskQueue, Worker, call, task
from sitq.administration import WorkerInfo, WorkerState
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from sitq.testing import FakeClock

pytestmark = pytest.mark.anyio

PATIENCE = 30


@task
async def quick() -> None:
    pass


class Gate:
    """Lets tasks through once it is open."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()


GATES: list[Gate] = []


@task
async def wait_at_gate() -> None:
    GATES[-1].reached.set()
    await GATES[-1].opened.wait()


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    GATES.append(Gate())
    yield GATES[-1]
    GATES.pop()


@pytest.fixture(params=["memory", "sqlite"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    store: Backend = (
        MemoryBackend() if request.param == "memory" else SQLiteBackend(tmp_path / "q.db")
    )
    await store.open()
    yield store
    await store.close()


async def until(admin: Admin, holds: Callable[[list[WorkerInfo]], bool]) -> list[WorkerInfo]:
    """Wait until something holds of the workers, and return them."""
    with anyio.fail_after(PATIENCE):
        while not holds(workers := await admin.list_workers()):  # noqa: ASYNC110 - of the store
            await anyio.sleep(0.005)
    return workers


async def test_a_worker_is_listed_while_it_runs(backend: Backend, gate: Gate) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        task_id = await queue.enqueue(wait_at_gate)
        async with Worker(backend, queues=["default", "mail"], max_concurrency=3, lease=0.9):
            (worker,) = await until(admin, lambda found: bool(found and found[0].running))
            assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
            assert (worker.version, worker.slots) == (sitq.__version__, 3)
            assert (worker.queues, worker.state) == (("default", "mail"), WorkerState.ACTIVE)
            assert {quick.__module__ + ":quick"} <= set(worker.functions)
            assert worker.tasks == (task_id,)
            gate.opened.set()
        assert await admin.list_workers() == []


async def test_a_quiet_worker_finishes_what_it_has(
    backend: Backend, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sitq.worker._registration")
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        first = await queue.enqueue(wait_at_gate)
        async with Worker(backend, poll_interval=60):
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
            (worker,) = await until(admin, bool)
            assert await admin.quiet_worker(worker.id) is True
            with anyio.fail_after(PATIENCE / 4):  # not with the next heartbeat, in ten seconds
                await until(admin, lambda found: found[0].state is WorkerState.QUIET)
            second = await queue.enqueue(quick)
            gate.opened.set()
            await queue.result(first, timeout=PATIENCE)
            assert await queue.get_result(second, timeout=0.05) is None
            assert await admin.resume_worker(worker.id) is True
            await queue.result(second, timeout=PATIENCE)
    texts = [record.getMessage() for record in caplog.records]
    orders = ("was told to reserve no more tasks", "was told to go on")
    assert [text for text in texts if " was told " in text] == [
        f"worker {worker.id} {order}" for order in orders
    ]


async def test_a_worker_is_stopped_from_elsewhere(backend: Backend) -> None:
    async with Admin(backend) as admin, anyio.create_task_group() as group:
        worker = Worker(backend)
        await group.start(worker.start)
        (info,) = await until(admin, bool)
        assert await admin.stop_worker(info.id) is True
        with anyio.fail_after(PATIENCE):  # `start` returns by itself
            await until(admin, lambda found: not found)
        assert await admin.stop_worker(info.id) is False


async def test_tasks_that_were_reserved_ahead_are_handed_back_by_a_pause(
    backend: Backend, gate: Gate
) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        async with Worker(backend, max_concurrency=1, poll_interval=60):
            # Short tasks: the worker reserves ahead.
            for task_id in await queue.enqueue_many([call(quick)] * 200):
                await queue.result(task_id, timeout=PATIENCE)
            blocking = await queue.enqueue(wait_at_gate)
            ahead = await queue.enqueue_many([call(quick)] * 50)
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
                await admin.pause_queue("default")
                where = TaskFilter(status="in_progress")
                while (await admin.count_tasks(where)).value > 1:  # noqa: ASYNC110 - of the store
                    await anyio.sleep(0.005)
            gate.opened.set()
            await queue.result(blocking, timeout=PATIENCE)
            for task_id in ahead:
                assert await queue.get_result(task_id, timeout=0) is None
            await admin.resume_queue("default")
            for task_id in ahead:
                await queue.result(task_id, timeout=PATIENCE)


async def test_what_no_worker_serves_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue:
        await queue.options(queue="mail").enqueue(quick)
        async with Worker(backend):
            for _ in range(5):
                await anyio.wait_all_tasks_blocked()
                clock.advance(60)
            with anyio.fail_after(PATIENCE):
                while not caplog.records:
                    await anyio.sleep(0.005)
                    clock.advance(60)
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert texts == ["tasks are due in queue 'mail', which no active worker serves"]
