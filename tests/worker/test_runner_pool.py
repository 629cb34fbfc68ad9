"""Attempts: each in a task of its own, and one attempt's end is not the next one's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker, call

pytestmark = pytest.mark.anyio

TOGETHER = 5
BARRIER = threading.Barrier(TOGETHER)
MET: list[int] = []
TASKS: list[asyncio.Task[Any]] = []
TRIO_TASKS: list[object] = []


async def nothing() -> None:
    pass


async def note_my_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    TASKS.append(task)


async def note_my_task_and_wait() -> None:
    await note_my_task()
    await anyio.sleep(0.001)
    assert asyncio.current_task() in TASKS


async def note_my_trio_task() -> None:
    TRIO_TASKS.append(trio.lowlevel.current_task())


async def use_asyncio() -> str:
    """Use timeouts, groups and cancellation of asyncio's without waiting first."""
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)
    except TimeoutError:
        pass
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            raise ValueError
    except* ValueError:
        pass
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        task.uncancel()
    return "in time"


async def use_anyio() -> str:
    """Use scopes, groups and threads of anyio's without waiting first."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(60)
    with anyio.move_on_after(0.001):
        await anyio.sleep(60)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        await anyio.to_thread.run_sync(threading.get_ident)
        group.cancel_scope.cancel()
    await anyio.to_thread.run_sync(anyio.from_thread.run, anyio.lowlevel.checkpoint)
    return "in time"


async def endless() -> None:
    MET.append(0)
    await anyio.sleep_forever()


async def meet(number: int) -> None:
    """Return once as many of these run at the same time as may."""
    MET.append(number)
    while len(MET) < TOGETHER:
        await anyio.lowlevel.checkpoint()


def meet_in_thread() -> None:
    BARRIER.wait(timeout=20)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    MET.clear()
    BARRIER.reset()


async def drained(path: Path, calls: list[Any], **options: Any) -> set[TaskStatus]:
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many(calls)
        with anyio.fail_after(20):
            await Worker(backend, **options).drain()
        return {(await queue.get_task(task_id)).status for task_id in ids}


@pytest.mark.parametrize("function", [note_my_task, note_my_task_and_wait])
async def test_each_attempt_has_an_asyncio_task_of_its_own_that_is_done_when_it_is(
    tmp_path: Path, anyio_backend: str, function: Callable[[], Awaitable[None]]
) -> None:
    if anyio_backend == "trio":
        pytest.skip("tasks of asyncio's")
    TASKS.clear()
    ended = await drained(tmp_path / "q.db", [call(function)] * 30, max_concurrency=3)
    assert ended == {TaskStatus.SUCCESS}
    assert len(set(TASKS)) == 30
    assert all(task.done() for task in TASKS)
    assert asyncio.current_task() not in TASKS


async def test_each_attempt_has_a_trio_task_of_its_own(tmp_path: Path, anyio_backend: str) -> None:
    if anyio_backend == "asyncio":
        pytest.skip("tasks of trio's")
    TRIO_TASKS.clear()
    ended = await drained(tmp_path / "q.db", [call(note_my_trio_task)] * 30, max_concurrency=3)
    assert ended == {TaskStatus.SUCCESS}
    assert len(set(TRIO_TASKS)) == 30


@pytest.mark.parametrize("function", [use_asyncio, use_anyio])
async def test_what_is_used_before_the_first_wait_works(
    tmp_path: Path, anyio_backend: str, function: Callable[[], Awaitable[str]]
) -> None:
    if anyio_backend == "trio" and function is use_asyncio:
        pytest.skip("asyncio's own")
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(function)
        with anyio.fail_after(20):
            await Worker(backend).drain()
        result = await queue.get_result(task_id, 0)
    assert result is not None
    assert result.error is None
    assert queue.deserialize_result(result) == "in time"


async def test_tasks_that_wait_run_at_the_same_time(tmp_path: Path) -> None:
    calls = [call(meet, number) for number in range(TOGETHER)]
    ended = await drained(tmp_path / "q.db", calls, max_concurrency=TOGETHER)
    assert ended == {TaskStatus.SUCCESS}


async def test_plain_functions_run_at_the_same_time(tmp_path: Path) -> None:
    calls = [call(meet_in_thread)] * TOGETHER
    ended = await drained(tmp_path / "q.db", calls, max_concurrency=TOGETHER)
    assert ended == {TaskStatus.SUCCESS}


async def test_what_waits_behind_a_task_that_is_cancelled_runs_to_its_end(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        # The worker learns that tasks are short, so that it reserves some behind the endless one.
        await queue.enqueue_many([call(nothing)] * 20)
        worker = Worker(backend, max_concurrency=1)
        await worker.drain()
        first, *others = await queue.enqueue_many([call(endless), *[call(nothing)] * 20])
        await group.start(worker.start)
        with anyio.fail_after(20):
            while not MET:
                await anyio.lowlevel.checkpoint()
            assert await queue.cancel(first)
            for task_id in others:
                result = await queue.get_result(task_id)
                assert result is not None
                assert result.status is TaskStatus.SUCCESS
            ended = await queue.get_result(first)
        assert ended is not None
        assert ended.status is TaskStatus.CANCELLED
        await worker.stop()
