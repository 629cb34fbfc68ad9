"""Heartbeats: what holds them up, what ends them, and what becomes of the tasks then."""

from __future__ import annotations

import ctypes
import logging
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus as TaskStatus_

import sitq.worker
from sitq import Backend, BackendBusyError, SitqError, SQLiteBackend, TaskQueue, TaskStatus, Worker
from sitq.backends.memory import MemoryBackend
from sitq.testing import FaultyBackend
from tests.worker.gate import GATE, bounded, until

pytestmark = pytest.mark.anyio

LEASE = 1.0
PAST = 1.5 * LEASE


def hold_interpreter(seconds: float) -> str:
    """Keep every other thread from running, as a regular expression or a large JSON does."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    return "done"


async def hold_interpreter_on_loop(seconds: float) -> str:
    return hold_interpreter(seconds)


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    return SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")


@pytest.mark.parametrize("function", [hold_interpreter, hold_interpreter_on_loop])
async def test_a_value_counts_though_the_interpreter_was_held_past_the_lease(
    backend: Backend, function: Any
) -> None:
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=LEASE, max_concurrency=2)
        await group.start(worker.start)
        for _ in range(2):
            task_id = await queue.enqueue(function, PAST)
            result = await queue.get_result(task_id, timeout=20)
            info = await queue.get_task(task_id)
            assert result is not None
            assert (result.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)
        await worker.stop()


async def test_a_neighbour_keeps_its_lease_though_the_interpreter_was_held(
    backend: Backend,
) -> None:
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=LEASE)
        await group.start(worker.start)
        neighbour = await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        for _ in range(2):
            await queue.get_result(await queue.enqueue(hold_interpreter, PAST), timeout=20)
        GATE.opened.set()
        await queue.get_result(neighbour, timeout=20)
        info = await queue.get_task(neighbour)
        assert (info.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)
        await worker.stop()


async def test_a_worker_is_not_ready_before_its_heartbeats_can_be_made() -> None:
    backend = FaultyBackend(MemoryBackend())
    backend.fail("renew", error=BackendBusyError("renew: no connection is left"))
    async with anyio.create_task_group() as group:
        with pytest.raises(BackendBusyError, match="no connection is left"):
            await group.start(Worker(backend).start)
    with pytest.raises(BackendBusyError, match="no connection is left"):
        backend.fail("renew", error=BackendBusyError("renew: no connection is left"))
        await Worker(backend).drain()


async def test_an_error_that_ends_the_heartbeats_ends_the_worker() -> None:
    """Its tasks are handed back, and `start` raises."""
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(bounded)
        caught: list[SitqError] = []

        async def work(*, task_status: TaskStatus_[None]) -> None:
            with pytest.raises(SitqError, match="heartbeat thread has ended") as raised:
                await Worker(backend, lease=LEASE).start(task_status=task_status)
            caught.append(raised.value)

        async with anyio.create_task_group() as group:
            await group.start(work)
            backend.fail("renew", error=SystemExit("a filter's"))
        assert isinstance(caught[0].__cause__, SystemExit)
        info = await queue.get_task(task_id)
        assert (info.status, info.attempts, info.crashes) == (TaskStatus.PENDING, 0, 0)


@pytest.fixture
def broken_logging() -> Iterator[None]:
    """Every log record of the worker meets a filter that raises."""

    def raises(_: logging.LogRecord) -> bool:
        raise RuntimeError("the filter's own")

    modules = [module.name for module in pkgutil.iter_modules(sitq.worker.__path__)]
    loggers = [logging.getLogger(f"sitq.worker.{name}") for name in modules]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(raises)
        logger.setLevel(logging.DEBUG)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeFilter(raises)
        logger.setLevel(level)


def fail() -> None:
    raise ValueError("text")


@pytest.mark.usefixtures("broken_logging")
@pytest.mark.parametrize("operation", ["renew", "reserve", "finish", "sweep"])
async def test_a_filter_that_raises_ends_neither_worker_nor_heartbeats(operation: Any) -> None:
    backend = FaultyBackend(MemoryBackend())
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=LEASE, poll_interval=0.05)
        await group.start(worker.start)
        held = await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        backend.fail(operation, times=2, error=RuntimeError("a bug of the store's"))
        failed = await queue.get_result(await queue.enqueue(fail), timeout=20)
        assert failed is not None
        assert failed.status is TaskStatus.FAILED
        await anyio.sleep(PAST)  # the lease must be renewed in real time
        GATE.opened.set()
        await queue.get_result(held, timeout=20)
        info = await queue.get_task(held)
        assert (info.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)
        await worker.stop()


WITHOUT_DESCRIPTORS = """
    import os, resource, sys
    import anyio
    from sitq import SQLiteBackend, TaskQueue, Worker

    async def slow() -> str:
        await anyio.sleep(2)
        return "done"

    async def main() -> None:
        backend = SQLiteBackend(sys.argv[1])
        async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
            worker = Worker(backend, lease=1.0)
            await group.start(worker.start)
            task_id = await queue.enqueue(slow)
            await queue.get_task(task_id)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            held = []
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            result = await queue.get_result(task_id, timeout=20)
            info = await queue.get_task(task_id)
            print(result and result.status.value, info.attempts, info.crashes)
            for file in held:
                os.close(file)
            await worker.stop()

    anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of descriptors are a matter of POSIX")
def test_leases_are_renewed_with_no_descriptor_left(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(WITHOUT_DESCRIPTORS),
            tmp_path / "q.db",
            anyio_backend_name,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.stdout.split() == ["success", "1", "0"], ended.stderr
