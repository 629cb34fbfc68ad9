"""The first query for a result: before a listener is opened, and not for a new task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sitq import TaskNotFoundError
from sitq.ids import new_task_id
from sitq.queue import _waiting
from tests.unit.queue_support import Waiter, add, finish, spied_queue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sitq import Result, TaskId

pytestmark = pytest.mark.anyio

NEVER = 3600.0


async def test_a_new_task_is_looked_for_when_there_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", NEVER)
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        waiter = Waiter()
        group.start_soon(waiter.run, queue, await queue.enqueue(add, 1, 2))
        await anyio.wait_all_tasks_blocked()
        assert not backend.looks
        await finish(backend, 3)
        await waiter.ended.wait()
        assert waiter.result is not None
        assert len(backend.looks) == 1


async def test_it_is_looked_for_without_news_once_it_is_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", 0.05)
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        with anyio.fail_after(20):
            assert await queue.get_result(task_id) is not None


async def test_newcomers_do_not_make_others_be_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", NEVER)
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(Waiter().run, queue, await queue.enqueue(add, 1, 2))
            await anyio.wait_all_tasks_blocked()
        assert not backend.looks
        group.cancel_scope.cancel()


async def test_a_short_timeout_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", NEVER)
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        waiter = Waiter()
        group.start_soon(waiter.run, queue, await queue.enqueue(add, 1, 2), 0.5)
        await anyio.wait_all_tasks_blocked()
        clock.advance(0.5)
        await waiter.ended.wait()
        assert (waiter.result, waiter.error) == (None, None)
        assert len(backend.looks) == 1


async def test_an_unknown_id_is_an_error_soon() -> None:
    async with spied_queue() as (queue, _, _):
        with anyio.fail_after(20), pytest.raises(TaskNotFoundError):
            await queue.get_result(new_task_id())


async def test_a_result_that_is_there_is_returned_without_a_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", 0.0)
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        assert await queue.get_result(task_id) is not None
        assert (backend.looks, backend.listened) == ([(task_id,)], 0)


async def test_a_result_that_comes_between_the_look_and_the_listener_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", 0.0)
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        look = backend.get_results

        async def look_and_finish(
            task_ids: Sequence[TaskId[Any]],
        ) -> Mapping[TaskId[Any], Result[Any] | None]:
            results = await look(task_ids)
            await finish(backend, 3)
            return results

        monkeypatch.setattr(backend, "get_results", look_and_finish)
        with anyio.fail_after(20):
            assert await queue.get_result(task_id) is not None
        assert (len(backend.looks), backend.listened) == (2, 1)
