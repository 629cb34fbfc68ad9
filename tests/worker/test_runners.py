"""The runners: no more of them than tasks that wait, and one task's end is not the next one's."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker, call
from sitq.worker._runner import Runner
from sitq.worker._runners import Runners

pytestmark = pytest.mark.anyio

TOGETHER = 5
BARRIER = threading.Barrier(TOGETHER)
MET: list[int] = []


async def nothing() -> None:
    pass


async def leave_a_scope_open() -> None:
    anyio.CancelScope().__enter__()


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


async def test_tasks_that_never_wait_need_one_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = 0
    run = Runner.run

    async def counted(self: Runner) -> None:
        nonlocal runners
        runners += 1
        await run(self)

    monkeypatch.setattr(Runner, "run", counted)
    ended = await drained(tmp_path / "q.db", [call(nothing)] * 50, max_concurrency=50)
    assert ended == {TaskStatus.SUCCESS}
    assert runners == 1


async def test_tasks_that_wait_run_at_the_same_time(tmp_path: Path) -> None:
    calls = [call(meet, number) for number in range(TOGETHER)]
    ended = await drained(tmp_path / "q.db", calls, max_concurrency=TOGETHER)
    assert ended == {TaskStatus.SUCCESS}


async def test_plain_functions_run_at_the_same_time(tmp_path: Path) -> None:
    calls = [call(meet_in_thread)] * TOGETHER
    ended = await drained(tmp_path / "q.db", calls, max_concurrency=TOGETHER)
    assert ended == {TaskStatus.SUCCESS}


@pytest.mark.parametrize("function", [nothing, leave_a_scope_open])
async def test_an_error_of_sitq_itself_is_not_taken_for_a_scope_that_a_task_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[[], Awaitable[None]]
) -> None:
    def take(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Runners, "take", take)
    with pytest.raises(ExceptionGroup) as raised:
        await drained(tmp_path / "q.db", [call(function)])
    error: BaseException = raised.value
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    # trio refuses to leave the scope around it, with the bug as the context.
    assert "a bug" in {str(error), str(error.__context__)}


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
