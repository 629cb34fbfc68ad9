"""Checks of what is reserved, in which order, and what is told of the rest."""

# Checks are made of assertions, on small numbers.
# ruff: noqa: S101, PLR2004

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sitq.models import ALL_QUEUES, OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._store import LEASE, PATIENCE, QUEUES, StoreUnderTest, new_task
from sitq.testing._conformance._suite import Suite

if TYPE_CHECKING:
    from sitq.ids import TaskId
    from sitq.testing._clock import FakeClock

__all__ = ["ReserveChecks"]


class ReserveChecks(Suite):
    """`Backend.reserve`."""

    async def test_a_reservation_counts_a_start(self, store: StoreUnderTest) -> None:
        """Each reservation adds one to epoch and attempts, and notes when it was."""
        task_id = await store.add()
        for turn in (1, 2, 3):
            await store.advance(1)
            now = await store.now()
            (task,) = await store.take()
            assert (task.id, task.epoch, task.attempt) == (task_id, turn, turn)
            info = await store.info(task_id)
            assert (info.status, info.attempts) == (TaskStatus.IN_PROGRESS, turn)
            assert store.same(info.started_at, now)
            assert await store.end(OutcomeKind.RETRY, task.lease)

    async def test_nothing_starts_before_its_eta(self, store: StoreUnderTest) -> None:
        """A task is due at its eta, and not a moment earlier."""
        task_id = await store.add(eta=await store.later(60))
        await store.advance(60 - store.tick)
        assert await store.take() == []
        await store.advance(store.tick)
        assert [task.id for task in await store.take()] == [task_id]

    async def test_a_past_eta_is_due_and_kept(self, store: StoreUnderTest) -> None:
        """An eta that has passed is not moved to the present."""
        eta = await store.now() - timedelta(days=400)
        task = await store.taken(eta=eta)
        assert task.eta == eta

    async def test_nothing_starts_once_it_has_expired(self, store: StoreUnderTest) -> None:
        """A task may start until just before it expires; sweeping is not needed for that."""
        late = await store.later(60)
        early = [await store.add(expires_at=late), await store.add(expires_at=late)]
        await store.advance(60 - store.tick)
        assert [task.id for task in await store.take(1)] == early[:1]
        await store.advance(store.tick)
        assert await store.take() == []
        assert await store.wait() is None
        assert await store.status(early[1]) is TaskStatus.PENDING

    async def test_what_runs_does_not_expire(self, store: StoreUnderTest) -> None:
        """The end of a task that started in time is accepted after ``expires_at``."""
        task = await store.taken(expires_at=await store.later(5))
        await store.advance(6)
        assert (await store.backend.sweep(3)).expired == 0
        assert await store.end(OutcomeKind.SUCCESS, task.lease)

    async def test_the_order_is_priority_then_eta_then_insertion(
        self, store: StoreUnderTest
    ) -> None:
        """The order holds over all queues that were asked for, in batches and one by one."""
        now = await store.now()
        tasks = [
            new_task(
                queue=("a", "b", "c")[number % 3],
                priority=(-100, 0, 1, 100)[number % 4],
                eta=now - timedelta(microseconds=number * 7 % 5),
            )
            for number in range(60)
        ]
        for task in tasks[:20]:
            await store.backend.enqueue([task])
        await store.backend.enqueue(tasks[20:])
        numbers = {task.id: number for number, task in enumerate(tasks)}
        order = sorted(tasks, key=lambda task: (-task.priority, task.eta, numbers[task.id]))
        expected = [task.id for task in order if task.queue in {"a", "c"}]
        found = [task.id for task in await store.take(7, queues=("c", "a"))]
        found += [(await store.take(1, queues=("a", "c")))[0].id for _ in range(3)]
        found += [task.id for task in await store.take(queues=("a", "c", "a"))]
        assert found == expected
        left = [task.id for task in order if task.queue == "b"]
        assert [task.id for task in await store.take(queues=("b", "none"))] == left

    async def test_the_star_means_every_queue(self, store: StoreUnderTest) -> None:
        """The order holds over all of them, and a queue that is new belongs to them."""
        assert await store.wait(ALL_QUEUES) is None
        later = await store.add(queue="z", eta=await store.later(9), priority=100)
        assert 0 < (await store.wait(ALL_QUEUES) or 0) <= 9
        names = ("b", "A", "a.b", "0", "a-b", "a", "_")
        now = await store.now()
        tasks = [
            new_task(
                queue=names[number % len(names)],
                priority=(0, 5, -5)[number % 3],
                eta=now - timedelta(seconds=number % 4),
            )
            for number in range(30)
        ]
        await store.backend.enqueue(tasks)
        numbers = {task.id: number for number, task in enumerate(tasks)}
        order = sorted(tasks, key=lambda task: (-task.priority, task.eta, numbers[task.id]))
        found = [task.id for task in await store.take(7, queues=ALL_QUEUES)]
        assert await store.wait(ALL_QUEUES) == 0
        new = await store.add(queue="new", priority=50)
        assert [task.id for task in await store.take(1, queues=ALL_QUEUES)] == [new]
        found += [task.id for task in await store.take(queues=ALL_QUEUES)]
        assert found == [task.id for task in order]
        await store.advance(9)
        assert [task.id for task in await store.take(queues=ALL_QUEUES)] == [later]

    async def test_a_task_put_back_keeps_its_place(self, store: StoreUnderTest) -> None:
        """A release does not send a task to the end of its queue."""
        first, second = await store.add(), await store.add()
        (task,) = await store.take(1)
        assert task.id == first
        assert await store.end(OutcomeKind.RELEASE, task.lease)
        assert [task.id for task in await store.take()] == [first, second]

    async def test_no_more_than_the_limit_is_taken(self, store: StoreUnderTest) -> None:
        """The first due tasks are taken, up to the limit; a limit of 0 takes nothing."""
        ids = await store.backend.enqueue([new_task() for _ in range(5)])
        assert await store.take(0) == []
        assert [task.id for task in await store.take(2)] == ids[:2]
        assert [task.id for task in await store.take(3)] == ids[2:]
        assert await store.take(1) == []

    async def test_no_queues_have_no_tasks(self, store: StoreUnderTest) -> None:
        """Asked for no queue, or for one that is empty, a store has nothing to wait for."""
        await store.add()
        for queues in ((), ("other",)):
            reservation = await store.backend.reserve("worker", queues, 10, LEASE)
            assert reservation == ((), None)

    async def test_wait_is_zero_while_due_tasks_are_left(self, store: StoreUnderTest) -> None:
        """What was left over by the limit is to be fetched at once."""
        await store.backend.enqueue([new_task(), new_task(priority=-5)])
        await store.add(eta=await store.later(9))
        assert await store.wait() == 0
        assert (await store.backend.reserve("worker", QUEUES, 1, LEASE)).wait == 0

    async def test_wait_is_the_time_until_the_next_eta(self, store: StoreUnderTest) -> None:
        """The earliest eta of the queues counts, whatever its priority."""
        await store.add(eta=await store.later(300), priority=9)
        await store.add(eta=await store.later(20.5), priority=-9)
        await store.add(eta=await store.later(10), queue="other")
        await store.add()
        taken = await store.backend.reserve("worker", QUEUES, 1, LEASE)
        assert len(taken.tasks) == 1
        assert taken.wait == pytest.approx(20.5, abs=store.tick)
        both = await store.backend.reserve("worker", ("other", "default"), 0, LEASE)
        assert both.wait == pytest.approx(10, abs=store.tick)

    async def test_wait_is_none_without_pending_tasks(self, store: StoreUnderTest) -> None:
        """Tasks in progress and final ones are not waited for."""
        assert await store.wait() is None
        task = await store.taken()
        assert await store.wait() is None
        await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.wait() is None

    async def test_wait_does_not_count_what_has_expired(self, store: StoreUnderTest) -> None:
        """A task that expired before its eta will never be due."""
        await store.add(eta=await store.later(60), expires_at=await store.later(10))
        await store.advance(10)
        assert await store.wait() is None

    @pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.UNKNOWN_FUNCTION])
    async def test_wait_counts_a_delayed_return(
        self, store: StoreUnderTest, kind: OutcomeKind
    ) -> None:
        """A task put back with a delay is due after it, and not a moment earlier."""
        task = await store.taken()
        now = await store.now()
        assert await store.end(kind, task.lease, 12.0)
        assert store.same((await store.info(task.id)).eta, now + timedelta(seconds=12))
        assert await store.wait() == pytest.approx(12, abs=store.tick)
        await store.advance(12 - store.tick)
        assert await store.take() == []
        await store.advance(store.tick)
        assert [again.id for again in await store.take()] == [task.id]

    async def test_callers_at_once_get_different_tasks(self, store: StoreUnderTest) -> None:
        """Fifty callers share the tasks out: none twice, none left."""
        ids = await store.backend.enqueue([new_task() for _ in range(120)])
        taken: list[TaskId[Any]] = []

        async def take() -> None:
            taken.extend(task.id for task in await store.take(3))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(take)
        assert len(taken) == 120
        assert set(taken) == set(ids)

    async def test_two_instances_get_different_tasks(
        self, store: StoreUnderTest, peer: StoreUnderTest
    ) -> None:
        """Instances on one store share its tasks out as well."""
        ids = await store.backend.enqueue([new_task() for _ in range(40)])
        taken: list[TaskId[Any]] = []

        async def take(side: StoreUnderTest) -> None:
            taken.extend(task.id for task in await side.take(4))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(take, store)
                    group.start_soon(take, peer)
        assert len(taken) == 40
        assert set(taken) == set(ids)

    async def test_a_clock_that_jumps_back_starts_nothing_early(
        self, store: StoreUnderTest, clock: FakeClock
    ) -> None:
        """After a jump back, what is not due yet is pending, and what was taken stays taken."""
        if abs(await store.now() - clock.now()) > timedelta(seconds=1):
            pytest.skip("this store has a time of its own")
        task_id = await store.add(eta=await store.later(10))
        running = await store.add()
        assert [task.id for task in await store.take()] == [running]
        await store.advance(5)
        clock.jump(-3600)
        assert await store.take() == []
        assert await store.wait() == pytest.approx(3605)
        clock.jump(3600)
        await store.advance(5)
        assert [task.id for task in await store.take()] == [task_id]
