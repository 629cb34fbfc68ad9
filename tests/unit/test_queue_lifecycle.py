"""A queue connects by itself, counts once, and says so when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from sitq import BackendError, SQLiteBackend, TaskQueue, UsageError, ValidationError, call
from sitq._loops import LoopRef
from sitq.ids import new_task_id
from tests.unit.queue_support import SpyBackend, add

SOME_ID = new_task_id()


@pytest.mark.anyio
async def test_the_first_use_connects_and_any_number_of_first_uses_count_once() -> None:
    backend = SpyBackend()
    queue = TaskQueue(backend)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(queue.enqueue, add, 1, 2)
    await queue.connect()
    await queue.connect()
    assert backend.opened == 1
    await queue.close()
    await queue.close()
    assert backend.opened == 0


@pytest.mark.anyio
async def test_closing_what_was_never_open_is_fine() -> None:
    await TaskQueue(SpyBackend()).close()


USES: list[Callable[[TaskQueue], Awaitable[object]]] = [
    lambda queue: queue.enqueue(add, 1, 2),
    lambda queue: queue.enqueue_many([call(add, 1, 2)]),
    lambda queue: queue.options(priority=1).enqueue(add, 1, 2),
    lambda queue: queue.get_result(SOME_ID),
    lambda queue: queue.get_result(SOME_ID, timeout=0),
    lambda queue: queue.get_task(SOME_ID),
    lambda queue: queue.cancel(SOME_ID),
    lambda queue: queue.retry(SOME_ID),
    lambda queue: queue.prune(0),
]


@pytest.mark.anyio
@pytest.mark.parametrize("use", USES)
async def test_a_closed_queue_refuses_and_says_how_to_go_on(
    use: Callable[[TaskQueue], Awaitable[object]],
) -> None:
    queue = TaskQueue(SpyBackend())
    async with queue:
        pass
    with pytest.raises(UsageError, match=r"connect\(\)"):
        await use(queue)


@pytest.mark.anyio
async def test_a_closed_queue_can_be_opened_again() -> None:
    backend = SpyBackend()
    queue = TaskQueue(backend)
    async with queue:
        task_id = await queue.enqueue(add, 1, 2)
    async with queue:
        assert (await queue.get_task(task_id)).status == "pending"
        assert backend.opened == 1
    assert backend.opened == 0


@pytest.mark.anyio
async def test_closing_ends_those_who_wait_for_results_and_their_listener() -> None:
    backend = SpyBackend()
    queue = TaskQueue(backend)
    ended = []

    async def wait(task_id: str) -> None:
        with pytest.raises(UsageError, match="closed during this call"):
            await queue.get_result(task_id)
        ended.append(task_id)

    async with queue:
        task_id = await queue.enqueue(add, 1, 2)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait, task_id)
            await anyio.wait_all_tasks_blocked()
            assert backend.listeners == 1
            await queue.close()
            assert backend.listeners == 0
    assert len(ended) == 3


@pytest.mark.anyio
async def test_a_close_that_is_cancelled_still_counts_the_queue_out() -> None:
    backend = SpyBackend()
    queue = TaskQueue(backend)
    await queue.connect()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await queue.close()
    assert backend.opened == 0


@pytest.mark.anyio
async def test_a_store_that_cannot_be_opened_is_tried_again_by_the_next_use() -> None:
    class Shy(SpyBackend):
        refusals = 1

        async def open(self) -> None:
            if self.refusals:
                self.refusals -= 1
                raise BackendError("not yet")
            await super().open()

    queue = TaskQueue(Shy())
    with pytest.raises(BackendError, match="not yet"):
        await queue.enqueue(add, 1, 2)
    assert await queue.enqueue(add, 1, 2)
    await queue.close()


def test_a_queue_in_use_by_one_loop_refuses_another(anyio_backend: str) -> None:
    queue = TaskQueue(SpyBackend())
    errors: list[Exception] = []

    async def other() -> None:
        for use in (*USES, TaskQueue.close):
            try:
                await use(queue)
            except UsageError as error:
                errors.append(error)

    async def main() -> None:
        await queue.enqueue(add, 1, 2)
        thread = threading.Thread(target=lambda: anyio.run(other, backend=anyio_backend))
        thread.start()
        thread.join()
        await queue.enqueue(add, 1, 2)
        await queue.close()

    anyio.run(main, backend=anyio_backend)
    assert len(errors) == len(USES) + 1
    assert all("another event loop" in str(error) for error in errors)


@pytest.mark.anyio
@pytest.mark.usefixtures("paused_collector")  # stores of earlier tests look too when collected
async def test_an_enqueue_looks_at_loop_and_process_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    looks: list[LoopRef] = []

    def is_here(self: LoopRef) -> bool:
        looks.append(self)
        return True

    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        await queue.enqueue(add, 1, 2)
        monkeypatch.setattr(LoopRef, "is_here", property(is_here))
        monkeypatch.setattr(LoopRef, "inherited", property(is_here))
        await queue.enqueue(add, 1, 2)
        assert len(looks) == 1
        monkeypatch.undo()


@pytest.mark.anyio
async def test_a_loop_that_runs_is_not_woken_to_learn_whether_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, calls = LoopRef(), list[object]()
    monkeypatch.setattr(LoopRef, "call_soon", lambda _, function: calls.append(function))
    assert (loop.ended, calls) == (False, [])


def test_a_queue_whose_loop_ended_without_a_close_serves_the_next_loop(
    anyio_backend: str, tmp_path: Any
) -> None:
    queue = TaskQueue(SQLiteBackend(tmp_path / "q.db"))
    ids = []

    async def use() -> None:
        ids.append(await queue.enqueue(add, 1, 2))
        assert (await queue.get_task(ids[0])).status == "pending"

    async def end() -> None:
        await use()
        await queue.close()

    anyio.run(use, backend=anyio_backend)
    anyio.run(use, backend="asyncio")
    anyio.run(end, backend=anyio_backend)
    assert len(ids) == 3


@pytest.mark.parametrize("backend", ["sitq.db", 3, b"x"])
def test_what_is_no_store_is_refused(backend: Any) -> None:
    with pytest.raises(ValidationError, match=r"backend: .*SQLiteBackend\(path\).*got"):
        TaskQueue(backend)


def test_without_a_store_it_is_a_file_in_the_working_folder_made_by_the_first_use(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    queue = TaskQueue()
    assert "sitq.db" in repr(queue)
    assert not (tmp_path / "sitq.db").exists()

    async def main() -> None:
        async with queue:
            await queue.enqueue(add, 1, 2)

    anyio.run(main)
    assert (tmp_path / "sitq.db").exists()
