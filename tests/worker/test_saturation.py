"""A worker whose places are all taken says by whom, once a minute."""

from __future__ import annotations

import logging

import anyio
import pytest

from sitq import TaskQueue, Worker
from sitq.backends.memory import MemoryBackend
from sitq.testing import FakeClock
from tests.worker.gate import GATE, add, endless, until

pytestmark = pytest.mark.anyio

QUEUE: list[TaskQueue] = []


async def awaits_another() -> None:
    """Wait for a task that only the same worker could run."""
    GATE.enter()
    await QUEUE[-1].get_result(await QUEUE[-1].enqueue(add, 1, 2))


def stuck() -> None:
    GATE.enter()
    GATE.opened.wait(20)


async def minutes(clock: FakeClock, count: float) -> None:
    for _ in range(int(count * 3)):
        clock.advance(20.0)
        await anyio.wait_all_tasks_blocked()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "all 1 places are taken" in text]


@pytest.mark.parametrize("function", [awaits_another, stuck, endless])
async def test_tasks_that_take_all_places_are_named_once_a_minute(
    function: object, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        QUEUE.append(queue)
        worker = Worker(backend, max_concurrency=1, lease=3600.0, shutdown_timeout=0)
        await group.start(worker.start)
        task_id = await queue.enqueue(function)  # type: ignore[call-overload]
        await until(GATE.entered.is_set)
        waiting = await queue.enqueue(add, 1, 2)
        await minutes(clock, 0.9)
        assert not warnings(caplog)
        await minutes(clock, 2.3)
        logged = warnings(caplog)
        assert 2 <= len(logged) <= 3
        assert all(task_id in text and waiting not in text for text in logged)
        GATE.opened.set()
        await worker.stop()


async def test_there_is_no_warning_about_long_tasks_while_no_others_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, max_concurrency=1, lease=3600.0, shutdown_timeout=0)
        await group.start(worker.start)
        await queue.enqueue(endless)
        await until(GATE.entered.is_set)
        with caplog.at_level(logging.WARNING):
            await minutes(clock, 3)
        assert not warnings(caplog)
        await worker.stop()
