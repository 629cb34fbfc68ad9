"""What is raised, or cancelled, in the middle of sitq's own code leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sitq import SQLiteBackend, TaskId, TaskQueue, TaskStatus, Worker, call
from sitq.clock import SystemClock
from sitq.worker import _runner_pool
from sitq.worker._attempt_tasks import AttemptTask
from tests.worker.gate import add

pytestmark = pytest.mark.anyio


class Interrupt(BaseException):
    """What a signal handler raises in these tests."""


class InterruptedClock(SystemClock):
    """Raises at one of the moments at which the loop's thread looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.rest = 0

    def monotonic(self) -> float:
        if self.rest and threading.get_ident() == self._thread:
            self.rest -= 1
            if not self.rest:
                raise Interrupt
        return super().monotonic()


async def statuses(queue: TaskQueue, task_ids: Iterable[TaskId[int]]) -> set[TaskStatus]:
    return {(await queue.get_task(task_id)).status for task_id in task_ids}


async def interrupted_drain(path: Path, moment: int) -> bool:
    """Return whether an interrupt at that moment ended a drain; no task is left in progress."""
    clock = InterruptedClock()
    backend = SQLiteBackend(path, synchronous="NORMAL", clock=clock)
    async with TaskQueue(backend) as queue:
        task_ids = await queue.enqueue_many([call(add, number, 1) for number in range(3)])
        clock.rest = moment
        try:
            await Worker(backend, max_concurrency=2).drain()
        except (BaseExceptionGroup, Interrupt):
            return True
        finally:
            has_ended, clock.rest = not clock.rest, 0
            # What the store reserves for a caller that is gone, it releases right after the answer.
            with anyio.fail_after(20):
                while TaskStatus.IN_PROGRESS in (found := await statuses(queue, task_ids)):
                    await anyio.lowlevel.checkpoint()
            assert found <= {TaskStatus.PENDING, TaskStatus.SUCCESS}
        return has_ended


async def test_what_a_signal_handler_raises_anywhere_ends_the_worker_and_hands_back(
    tmp_path: Path,
) -> None:
    moment = 1
    while await interrupted_drain(tmp_path / f"{moment}.db", moment):
        moment += 1
    assert moment > 10


class Signalling(Exception):
    """A signal comes while sitq asks for its text."""

    def __str__(self) -> str:
        signal.raise_signal(signal.SIGTERM)
        return "text"


async def raise_signalling() -> None:
    raise Signalling


async def test_what_a_signal_handler_raises_while_an_error_becomes_text_is_no_outcome(
    queue: TaskQueue, tmp_path: Path
) -> None:
    def on_term(number: int, frame: FrameType | None) -> None:
        sys.exit(5)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        task_id = await queue.enqueue(raise_signalling)
        with pytest.raises(SystemExit):
            await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
    finally:
        signal.signal(signal.SIGTERM, before)
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_attempt_cancelled_before_its_first_step_is_handed_back(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[bool] = []

    class CancelledTask(AttemptTask):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if len(cancelled) < 3:
                cancelled.append(self.cancel())

    monkeypatch.setattr(_runner_pool, "AttemptTask", CancelledTask)
    task_ids = await queue.enqueue_many([call(add, number, 1) for number in range(4)])
    await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=2).drain()
    for number, task_id in enumerate(task_ids):
        assert await queue.result(task_id, timeout=0) == number + 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_worker_cancelled_before_its_first_step_blocks_no_call(
    tmp_path: Path,
) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL"))
    others, loop = asyncio.all_tasks(), asyncio.get_running_loop()

    def cancel_all() -> None:  # as the end of asyncio.run() does
        for task in asyncio.all_tasks() - others:
            task.cancel()

    async def use() -> None:
        loop.call_soon(cancel_all)
        async with worker:
            pytest.fail("the worker does not run")

    with anyio.fail_after(10):
        (ended,) = await asyncio.gather(loop.create_task(use()), return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)
