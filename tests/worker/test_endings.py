"""What ends an attempt from outside: its timeout, a cancellation, and the stop of its worker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from sitq import SQLiteBackend, TaskQueue, TaskStatus, UsageError, Worker, current_task
from sitq._loops import LoopRef
from sitq.models import Reservation, TaskInfo
from sitq.worker._calls import ThreadedCall
from tests.worker.gate import (
    GATE,
    add,
    bounded,
    bounded_in_thread,
    ended,
    endless,
    multiply,
    until,
    working,
)

pytestmark = pytest.mark.anyio


async def complain_at_the_end() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise RuntimeError("I was not done")


async def return_at_the_end() -> str:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        return "half done"
    return "never"


async def clean_up() -> None:
    GATE.enter()
    try:
        await anyio.sleep_forever()
    finally:
        for number in range(3):
            await anyio.sleep(0.001)
            GATE.log.append(number)


async def clean_up_for_ever() -> None:
    GATE.enter()
    try:
        await anyio.sleep_forever()
    finally:
        await anyio.sleep_forever()


async def finish_in_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        GATE.enter()
        await until(GATE.opened.is_set)
        GATE.log.append("shielded")
    try:
        await anyio.sleep_forever()
    finally:
        await anyio.sleep(0.001)
        GATE.log.append("clean")


async def shielded_for_a_while() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    with anyio.CancelScope(shield=True):
        GATE.enter()
        await until(lambda: current_task().cancel_requested)
        GATE.log.append("cancelled")
        await until(GATE.opened.is_set)
        await anyio.sleep(0.3)
        GATE.log.append(loop.turns)
    await anyio.sleep_forever()


def until_cancelled() -> str:
    GATE.enter()
    while not current_task().cancel_requested:
        time.sleep(0.001)
    raise InterruptedError


@pytest.mark.parametrize("function", [endless, bounded_in_thread])
async def test_an_attempt_ends_at_its_timeout(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    async with working(tmp_path, shutdown_timeout=0):
        result = await ended(queue, await queue.options(timeout=0.05).enqueue(function))
        GATE.opened.set()
    assert result.status is TaskStatus.FAILED
    assert "timeout of 0.05 s" in str(result.error)


async def test_what_a_task_raises_at_its_timeout_is_the_cause(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.options(timeout=0.02).enqueue(complain_at_the_end)
    await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
    result = await queue.get_result(task_id, 0)
    assert result is not None
    assert result.error == "TimeoutError: the attempt ran out of its timeout of 0.02 s"
    assert "RuntimeError: I was not done" in str(result.traceback)


async def test_what_a_task_returns_after_its_timeout_is_its_result(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.options(timeout=0.02).enqueue(return_at_the_end)
    await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
    result = await queue.get_result(task_id, 0)
    assert result is not None
    assert (result.status, queue.deserialize_result(result)) == (TaskStatus.SUCCESS, "half done")


async def test_a_thread_that_runs_on_after_its_timeout_keeps_its_place(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path, max_concurrency=1):
        slow = await queue.options(timeout=0.05).enqueue(bounded_in_thread)
        await ended(queue, slow)
        waiting = await queue.enqueue(bounded_in_thread)
        assert await queue.get_result(waiting, timeout=0.2) is None
        assert GATE.most == 1
        GATE.opened.set()
        assert (await ended(queue, waiting)).status is TaskStatus.SUCCESS
    assert GATE.most == 1


async def test_a_plain_function_that_ignores_its_cancellation_is_left_at_its_timeout(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path, shutdown_timeout=0):
        task_id = await queue.options(timeout=0.5).enqueue(bounded_in_thread)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        try:
            assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED
        finally:
            GATE.opened.set()


def test_a_call_that_was_left_before_a_thread_began_it_is_not_made() -> None:
    done: list[str] = []
    call = ThreadedCall()
    assert not call.leave(lambda: done.append("freed"))
    call.run(done.append, ("called",), {})
    assert done == ["freed"]


@pytest.mark.parametrize("timeout", [1e-6, 1e-4])
async def test_a_thread_that_never_began_gives_its_place_back(
    queue: TaskQueue, tmp_path: Path, timeout: float
) -> None:
    """Plain functions whose time is over before they start do not use a worker up."""
    for _ in range(3):
        await queue.options(timeout=timeout).enqueue(multiply, 1, 1)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=2)
    with anyio.fail_after(20):
        assert await worker.drain() == 3
    task_id = await queue.enqueue(multiply, 3, 4)
    assert await worker.drain() == 1
    assert queue.deserialize_result(await ended(queue, task_id)) == 12


@pytest.mark.parametrize("function", [endless, until_cancelled])
async def test_a_running_task_is_cancelled_at_once_from_anywhere(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    async with working(tmp_path, lease=3600):
        task_id = await queue.enqueue(function)
        await until(GATE.entered.is_set)
        assert await queue.cancel(task_id)
        result = await ended(queue, task_id)
        assert result.status is TaskStatus.CANCELLED
        assert not await queue.cancel(task_id)


async def test_a_task_cancelled_while_pending_never_starts(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(bounded)
    assert await queue.cancel(task_id)
    async with working(tmp_path):
        await ended(queue, await queue.enqueue(add, 1, 1))
    assert not GATE.entered.is_set()
    assert (await ended(queue, task_id)).started_at is None


async def test_stop_lets_what_runs_finish(queue: TaskQueue, tmp_path: Path) -> None:
    task_id = await queue.enqueue(bounded)
    async with working(tmp_path) as worker, anyio.create_task_group() as group:
        await until(GATE.entered.is_set)
        group.start_soon(worker.stop)
        await anyio.wait_all_tasks_blocked()
        GATE.opened.set()
    assert (await ended(queue, task_id)).status is TaskStatus.SUCCESS


async def test_what_is_reserved_as_the_worker_is_stopped_is_handed_back(
    queue: TaskQueue, tmp_path: Path
) -> None:
    path = tmp_path / "q.db"
    asked, goes_on = anyio.Event(), anyio.Event()

    class Slow(SQLiteBackend):
        async def reserve(self, *request: Any) -> Reservation:
            asked.set()
            await goes_on.wait()
            return await super().reserve(*request)

    worker = Worker(Slow(path))
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        await asked.wait()
        group.start_soon(worker.stop)
        await anyio.wait_all_tasks_blocked()
        task_id = await queue.enqueue(add, 1, 2)
        goes_on.set()
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


async def test_what_does_not_finish_in_time_is_handed_back_unspent(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(endless)
    async with working(tmp_path, shutdown_timeout=0.01):
        await until(GATE.entered.is_set)
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts, info.crashes) == (TaskStatus.PENDING, 0, 0)
    assert GATE.running == 0


async def stop_beside_a_shield(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture, fact: str, **options: Any
) -> tuple[TaskInfo, TaskInfo]:
    """Return what a shielded task is while its worker waits for its end, and after that."""
    task_id = await queue.enqueue(finish_in_a_shield)
    with anyio.fail_after(20):
        async with working(tmp_path, shutdown_timeout=0, cancel_grace=0, **options) as worker:
            await until(GATE.entered.is_set)
            async with anyio.create_task_group() as group:
                group.start_soon(worker.stop)
                await until(lambda: fact in caplog.text)
                during = await queue.get_task(task_id)
                GATE.opened.set()
        return during, await queue.get_task(task_id)


async def test_a_task_that_refuses_to_end_keeps_its_lease_until_it_has_ended(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fact = "does not end; its lease is no longer renewed"
    during, after = await stop_beside_a_shield(queue, tmp_path, caplog, fact)
    assert during.status is TaskStatus.IN_PROGRESS
    assert (after.status, after.attempts, after.crashes) == (TaskStatus.PENDING, 0, 0)
    assert caplog.text.count(fact) == 1


async def test_the_lease_of_a_task_that_refuses_to_end_runs_out(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fact = "1 tasks of lost workers were reclaimed"
    during, after = await stop_beside_a_shield(queue, tmp_path, caplog, fact, lease=0.5)
    assert (during.status, during.attempts, during.crashes) == (TaskStatus.PENDING, 0, 1)
    assert after == during


async def test_a_drain_ends_though_an_abandoned_thread_runs_on(
    queue: TaskQueue, tmp_path: Path
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")
    for places in (1, 2):
        task_id = await queue.options(timeout=0.05).enqueue(bounded_in_thread)
        with anyio.fail_after(20):
            assert await Worker(backend, max_concurrency=places).drain() == 1
        assert (await ended(queue, task_id)).status is TaskStatus.FAILED
    assert GATE.running == 2
    GATE.opened.set()


async def test_the_timeout_of_an_attempt_without_a_thread_ends_no_other_attempt(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked: list[str] = []
    call_later = LoopRef.call_later

    def counted(self: LoopRef, seconds: float, function: Any) -> Any:
        revoke = call_later(self, seconds, function)

        def revoke_once() -> None:
            revoked.append("revoked")
            revoke()

        return revoke_once

    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(LoopRef, "call_later", counted)
    monkeypatch.setattr("sitq.worker._attempt.to_thread.run_sync", no_thread)
    task_id = await queue.options(timeout=30).enqueue(multiply, 1, 1)
    await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=1).drain()
    assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
    assert revoked == ["revoked"]


async def test_cancelling_the_scope_around_start_hands_back_too(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(endless)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        await until(GATE.entered.is_set)
        group.cancel_scope.cancel()
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


async def test_a_worker_stops_twice_and_starts_again(queue: TaskQueue, tmp_path: Path) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    await worker.stop()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            with pytest.raises(UsageError, match="running already"):
                await worker.start()
            await ended(queue, await queue.enqueue(add, 1, 1))
            group.start_soon(worker.stop)
            await worker.stop()
        await worker.stop()


async def test_a_worker_is_stopped_from_another_thread(
    queue: TaskQueue, tmp_path: Path, anyio_backend_name: str
) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        other = "trio" if anyio_backend_name == "asyncio" else "asyncio"
        await to_thread.run_sync(lambda: anyio.run(worker.stop, backend=other))


async def test_clean_up_that_awaits_works_at_a_timeout(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.options(timeout=0.02).enqueue(clean_up))
    assert GATE.log == [0, 1, 2]
    assert "timeout of 0.02 s" in str(result.error)


async def test_clean_up_that_awaits_works_at_a_cancellation(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(clean_up)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED
    assert GATE.log == [0, 1, 2]


@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_clean_up_that_awaits_works_at_the_end_of_the_worker(
    queue: TaskQueue, tmp_path: Path, way: str
) -> None:
    task_id = await queue.enqueue(clean_up)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), shutdown_timeout=0)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        await until(GATE.entered.is_set)
        if way == "stop":
            await worker.stop()
        else:
            group.cancel_scope.cancel()
    assert GATE.log == [0, 1, 2]
    assert (await queue.get_task(task_id)).status is TaskStatus.PENDING


@pytest.mark.parametrize("grace", [0, 0.05])
async def test_clean_up_that_does_not_end_is_cut_after_the_grace(
    queue: TaskQueue, tmp_path: Path, grace: float
) -> None:
    async with working(tmp_path, cancel_grace=grace):
        task_id = await queue.enqueue(clean_up_for_ever)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED


async def test_a_cancellation_waits_for_a_shield_and_the_grace_begins_then(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(finish_in_a_shield)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        await anyio.wait_all_tasks_blocked()
        GATE.opened.set()
        assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED
    assert GATE.log == ["shielded", "clean"]


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts its turns."""

    turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"loop_factory": CountingLoop}), id="asyncio")]
)
async def test_a_loop_rests_while_a_shield_holds_a_cancellation_up(
    queue: TaskQueue, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    async with working(tmp_path):
        task_id = await queue.enqueue(shielded_for_a_while)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        await until(lambda: GATE.log)
        before = loop.turns
        GATE.opened.set()
        assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED
    assert GATE.log[1] - before < 200
