"""Any number of callers wait for results with one listener and one look a change."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sitq import (
    BackendBusyError,
    BackendConnectionError,
    SQLiteBackend,
    TaskNotFoundError,
    TaskQueue,
    call,
)
from sitq.ids import new_task_id
from sitq.queue import _waiting
from tests.unit.queue_support import Waiter, add, finish, spied_queue

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def grown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each task looked for at once, as if it had not been stored just now."""
    monkeypatch.setattr(_waiting, "_MIN_TASK_AGE", 0.0)


async def test_waiting_ends_with_the_task() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        assert not waiter.ended.is_set()
        await finish(backend, 3)
        await waiter.ended.wait()
        assert waiter.result is not None
        assert queue.deserialize_result(waiter.result) == 3
        assert backend.listeners == 0


async def test_a_thousand_waiters_cost_one_listener_and_few_looks() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        ids = await queue.enqueue_many([call(add, 1, 2)] * 1000)
        waiters = [Waiter() for _ in ids]
        for waiter, task_id in zip(waiters, ids, strict=True):
            group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        assert backend.listeners == 1
        assert len(backend.looks) <= 5
        backend.looks.clear()
        assert await finish(backend, 3) == 1000
        for waiter in waiters:
            await waiter.ended.wait()
        assert all(waiter.result is not None for waiter in waiters)
        assert len(backend.looks) == 2
        assert max(len(ids) for ids in backend.looks) == 500


async def test_one_change_is_one_look_for_all_who_still_wait() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        late = [await queue.options(priority=-1).enqueue(add, 1, 2) for _ in range(50)]
        waiters = [Waiter() for _ in late]
        for waiter, task_id in zip(waiters, late, strict=True):
            group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        backend.looks.clear()
        other = await queue.enqueue(add, 1, 2)
        await queue.cancel(other)
        await anyio.wait_all_tasks_blocked()
        assert [set(ids) for ids in backend.looks] == [set(late)]
        group.cancel_scope.cancel()


async def test_a_newcomer_costs_a_look_for_itself_only() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        ids = [await queue.enqueue(add, 1, 2) for _ in range(3)]
        group.start_soon(Waiter().run, queue, ids[0])
        await anyio.wait_all_tasks_blocked()
        backend.looks.clear()
        group.start_soon(Waiter().run, queue, ids[1])
        group.start_soon(Waiter().run, queue, ids[2])
        await anyio.wait_all_tasks_blocked()
        looked_for = [task_id for look in backend.looks for task_id in look]
        assert sorted(looked_for) == sorted(ids[1:])
        assert backend.listeners == 1
        group.cancel_scope.cancel()


async def test_a_newcomer_beside_a_change_does_not_hide_it() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        other = await queue.options(delay=3600).enqueue(add, 1, 2)
        for turns in range(60):
            task_id = await queue.enqueue(add, 1, 2)
            waiter, newcomer = Waiter(), Waiter()
            looks = len(backend.looks)
            group.start_soon(waiter.run, queue, task_id)
            while len(backend.looks) == looks:
                await checkpoint()
            for _ in range(5):  # from its look on, the leader is soon back at its listener
                await checkpoint()

            async def come(newcomer: Waiter = newcomer, turns: int = turns % 6) -> None:
                for _ in range(turns):
                    await checkpoint()
                await newcomer.run(queue, other)

            group.start_soon(come)
            await finish(backend, 3)
            await waiter.ended.wait()
            newcomer.scope.cancel()
            await newcomer.ended.wait()


async def test_a_leader_that_is_cancelled_hands_over() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiters = [Waiter() for _ in range(3)]
        for waiter in waiters:
            group.start_soon(waiter.run, queue, task_id)
            await anyio.wait_all_tasks_blocked()
        for leader in waiters[:2]:
            leader.scope.cancel()
            await leader.ended.wait()
            await anyio.wait_all_tasks_blocked()
            assert backend.listeners == 1
        await finish(backend, 3)
        await waiters[2].ended.wait()
        assert waiters[2].result is not None


async def test_a_leader_and_its_successor_cancelled_at_once_hand_over() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiters = [Waiter() for _ in range(5)]
        for waiter in waiters:
            group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        for waiter in waiters[:4]:
            waiter.scope.cancel()
        await finish(backend, 3)
        await waiters[4].ended.wait()
        assert waiters[4].result is not None


async def test_cancelled_waiters_leave_nothing_behind() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(Waiter().run, queue, task_id)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        waiters = await queue._handle.waiters()
        assert backend.listeners == 0
        assert (waiters._waiting, waiters._unseen, waiters._leader) == ({}, {}, None)


async def test_a_timeout_is_counted_by_the_stores_clock() -> None:
    async with spied_queue() as (queue, _, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiters = [Waiter(), Waiter()]
        for waiter in waiters:
            group.start_soon(waiter.run, queue, task_id, 60.0)
        await anyio.wait_all_tasks_blocked()
        clock.advance(59.9)
        await anyio.wait_all_tasks_blocked()
        assert not any(waiter.ended.is_set() for waiter in waiters)
        clock.advance(0.1)
        for waiter in waiters:
            await waiter.ended.wait()
            assert (waiter.result, waiter.error) == (None, None)


async def test_a_wait_that_ends_before_the_stores_first_answer_still_looks_once() -> None:
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        backend.hanging = 1
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id, 1.0)
        await anyio.wait_all_tasks_blocked()
        clock.advance(1.0)
        await waiter.ended.wait()
        assert waiter.result is not None


async def test_an_unknown_id_ends_its_own_wait_only() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        good, bad = Waiter(), Waiter()
        group.start_soon(bad.run, queue, new_task_id())
        group.start_soon(good.run, queue, task_id)
        await bad.ended.wait()
        assert isinstance(bad.error, TaskNotFoundError)
        await finish(backend, 3)
        await good.ended.wait()
        assert good.result is not None


async def test_a_task_that_is_pruned_during_a_wait_is_not_found() -> None:
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        await finish(backend, 3)
        await backend.prune(0)
        clock.advance(1)
        await waiter.ended.wait()
        # The look may have come before the pruning: both ends are true ones.
        assert isinstance(waiter.error, TaskNotFoundError) or waiter.result is not None
        again = Waiter()
        await again.run(queue, task_id)
        assert isinstance(again.error, TaskNotFoundError)


async def test_a_busy_store_is_asked_again_with_growing_pauses() -> None:
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        backend.errors += [BackendBusyError("busy")] * 3
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id, 60.0)
        for pause in (0.05, 0.1, 0.2):
            await anyio.wait_all_tasks_blocked()
            looks = len(backend.looks)
            clock.advance(pause * 0.9)
            await anyio.wait_all_tasks_blocked()
            assert len(backend.looks) == looks
            clock.advance(pause * 0.2)
        await waiter.ended.wait()
        assert waiter.result is not None


async def test_a_store_that_stays_busy_until_the_timeout_is_an_error_without_another_look() -> None:
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        backend.errors += [BackendBusyError("busy")] * 100
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id, 0.01)
        await anyio.wait_all_tasks_blocked()
        clock.advance(0.01)
        await waiter.ended.wait()
        assert isinstance(waiter.error, BackendBusyError)
        assert len(backend.looks) == 1


async def test_any_other_error_of_the_store_reaches_every_waiter() -> None:
    async with spied_queue() as (queue, backend, _), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiters = [Waiter() for _ in range(50)]
        for waiter in waiters:
            group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        backend.errors.append(BackendConnectionError("gone"))
        await queue.cancel(await queue.enqueue(add, 1, 2))  # a change, and so a look
        for waiter in waiters:
            await waiter.ended.wait()
            assert isinstance(waiter.error, BackendConnectionError)
            trace, frames = waiter.error.__traceback__, 0
            while trace is not None:
                trace, frames = trace.tb_next, frames + 1
            assert frames < 20
        await finish(backend, 3)
        assert await queue.get_result(task_id) is not None


async def test_a_change_that_the_listener_missed_is_seen_within_a_second() -> None:
    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        waiter = Waiter()
        group.start_soon(waiter.run, queue, task_id)
        await anyio.wait_all_tasks_blocked()
        looks = len(backend.looks)
        clock.advance(0.99)
        await anyio.wait_all_tasks_blocked()
        assert len(backend.looks) == looks
        clock.advance(0.01)
        await anyio.wait_all_tasks_blocked()
        assert len(backend.looks) == looks + 1
        group.cancel_scope.cancel()


async def cancel_after(waiter: Waiter, turns: int) -> None:
    for _ in range(turns):
        await checkpoint()
    waiter.scope.cancel()


async def test_waiters_cancelled_at_random_points_do_not_keep_the_others_waiting() -> None:
    draw = random.Random(11)
    async with spied_queue() as (queue, backend, _):
        for _ in range(30):
            ids = [await queue.enqueue(add, 1, 2) for _ in range(4)]
            async with anyio.create_task_group() as group:
                survivors, victims = [Waiter() for _ in ids], [Waiter() for _ in range(8)]
                for waiter in draw.sample(survivors + victims, 12):
                    group.start_soon(waiter.run, queue, draw.choice(ids))
                for victim in victims:
                    group.start_soon(cancel_after, victim, draw.randrange(25))
                for _ in range(draw.randrange(25)):
                    await checkpoint()
                await finish(backend, 3)
                for waiter in survivors:
                    await waiter.ended.wait()
                    assert waiter.result is not None
            assert backend.listeners == 0


async def test_waiters_for_a_file_cancelled_at_random_points_leave_a_working_queue(
    tmp_path: Path,
) -> None:
    draw = random.Random(12)
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        ids = await queue.enqueue_many([call(add, 1, 2)] * 20)
        survivors, victims = [Waiter() for _ in ids], [Waiter() for _ in range(40)]
        for waiter, task_id in zip(survivors, ids, strict=True):
            group.start_soon(waiter.run, queue, task_id, 60.0)
        for victim in victims:
            group.start_soon(victim.run, queue, draw.choice(ids), draw.choice([None, 60.0]))
            group.start_soon(cancel_after, victim, draw.randrange(40))
        for victim in victims[:20]:
            await victim.ended.wait()
        await finish(backend, 3)
        for waiter in survivors + victims:
            await waiter.ended.wait()
        assert all(waiter.result is not None for waiter in survivors)
        waiters = await queue._handle.waiters()
        assert (waiters._waiting, waiters._leader) == ({}, None)
        assert await queue.enqueue(add, 1, 2)
