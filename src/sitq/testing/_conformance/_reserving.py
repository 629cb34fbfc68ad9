"""Checks of which tasks are reserved, in which order, and how long the wait for others is."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from sitq.models import ALL_QUEUES, OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import LEASE, QUEUES, Store, Suite, at_once, new_task

if TYPE_CHECKING:
    from sitq.models import Task
    from sitq.testing._clock import FakeClock

__all__ = ["ReserveChecks"]


def _in_order(tasks: list[Task]) -> list[Task]:
    """Sort tasks, which are in the order of insertion, by priority and eta."""
    return sorted(tasks, key=lambda task: (-task.priority, task.eta))


class ReserveChecks(Suite):
    """`Backend.reserve`."""

    async def test_a_reservation_counts_a_start(self, store: Store) -> None:
        """Each reservation adds one to epoch and attempts, and notes when it was."""
        task_id = await store.add()
        for turn in (1, 2, 3):
            await store.advance(1)
            now = await store.now()
            task = await store.take_one()
            assert (task.id, task.epoch, task.attempt) == (task_id, turn, turn)
            info = await store.info(task_id)
            assert (info.status, info.attempts) == (TaskStatus.IN_PROGRESS, turn)
            assert store.same(info.started_at, now)
            assert await store.end(OutcomeKind.RETRY, task.lease)

    async def test_nothing_starts_before_its_eta(self, store: Store) -> None:
        """A task is due at its eta, not before."""
        task_id = await store.add(eta=await store.later(60))
        async with store.just_before(60):
            assert await store.take() == []
        assert await store.take_ids() == [task_id]

    async def test_a_past_eta_is_due_and_kept(self, store: Store) -> None:
        """An eta that has passed is not moved to the present."""
        eta = await store.now() - timedelta(days=400)
        task = await store.taken(eta=eta)
        assert task.eta == eta

    async def test_nothing_starts_once_it_has_expired(self, store: Store) -> None:
        """A task can start until just before it expires, even if no sweep comes."""
        late = await store.later(60)
        early = [await store.add(expires_at=late), await store.add(expires_at=late)]
        async with store.just_before(60):
            assert await store.take_ids(1) == early[:1]
        assert await store.take() == []
        assert await store.wait() is None
        assert await store.status(early[1]) is TaskStatus.PENDING

    async def test_what_runs_does_not_expire(self, store: Store) -> None:
        """An outcome is accepted after ``expires_at`` if the task started in time."""
        task = await store.taken(expires_at=await store.later(5))
        await store.advance(6)
        assert (await store.sweep(3)).expired == 0
        assert await store.end(OutcomeKind.SUCCESS, task.lease)

    async def test_the_order_is_priority_then_eta_then_insertion(self, store: Store) -> None:
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
            await store.enqueue([task])
        await store.enqueue(tasks[20:])
        order = _in_order(tasks)
        expected = [task.id for task in order if task.queue in {"a", "c"}]
        found = await store.take_ids(7, queues=("c", "a"))
        for _ in range(3):
            found += await store.take_ids(1, queues=("a", "c"))
        found += await store.take_ids(queues=("a", "c", "a"))
        assert found == expected
        left = [task.id for task in order if task.queue == "b"]
        assert await store.take_ids(queues=("b", "none")) == left

    async def test_the_star_means_every_queue(self, store: Store) -> None:
        """The order holds over all queues, and a new queue counts too."""
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
        await store.enqueue(tasks)
        found = await store.take_ids(7, queues=ALL_QUEUES)
        assert await store.wait(ALL_QUEUES) == 0
        new = await store.add(queue="new", priority=50)
        assert await store.take_ids(1, queues=ALL_QUEUES) == [new]
        found += await store.take_ids(queues=ALL_QUEUES)
        assert found == [task.id for task in _in_order(tasks)]
        await store.advance(9)
        assert await store.take_ids(queues=ALL_QUEUES) == [later]

    async def test_a_task_put_back_keeps_its_place(self, store: Store) -> None:
        """A release does not send a task to the end of its queue."""
        first, second = await store.add(), await store.add()
        (task,) = await store.take(1)
        assert task.id == first
        assert await store.end(OutcomeKind.RELEASE, task.lease)
        assert await store.take_ids() == [first, second]

    async def test_no_more_than_the_limit_is_taken(self, store: Store) -> None:
        """The first due tasks are taken, up to the limit; a limit of 0 takes nothing."""
        ids = await store.add_many(5)
        assert await store.take(0) == []
        assert await store.take_ids(2) == ids[:2]
        assert await store.take_ids(3) == ids[2:]
        assert await store.take(1) == []

    async def test_no_queues_have_no_tasks(self, store: Store) -> None:
        """Without queues, or with an empty one, there is no wait."""
        await store.add()
        for queues in ((), ("other",)):
            assert await store.reserve("worker", queues, 10, LEASE) == ((), None)

    async def test_wait_is_zero_while_due_tasks_are_left(self, store: Store) -> None:
        """If the limit leaves due tasks, the wait is 0."""
        await store.enqueue([new_task(), new_task(priority=-5)])
        await store.add(eta=await store.later(9))
        assert await store.wait() == 0
        assert (await store.reserve("worker", QUEUES, 1, LEASE)).wait == 0

    async def test_wait_is_the_time_until_the_next_eta(self, store: Store) -> None:
        """The earliest eta of the queues counts, whatever its priority."""
        await store.add(eta=await store.later(300), priority=9)
        await store.add(eta=await store.later(20.5), priority=-9)
        await store.add(eta=await store.later(10), queue="other")
        await store.add()
        taken = await store.reserve("worker", QUEUES, 1, LEASE)
        assert len(taken.tasks) == 1
        assert taken.wait == pytest.approx(20.5, abs=store.tick)
        both = await store.reserve("worker", ("other", "default"), 0, LEASE)
        assert both.wait == pytest.approx(10, abs=store.tick)

    async def test_wait_is_none_without_pending_tasks(self, store: Store) -> None:
        """Tasks in progress and final ones are not waited for."""
        assert await store.wait() is None
        task = await store.taken()
        assert await store.wait() is None
        await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.wait() is None

    async def test_wait_does_not_count_what_has_expired(self, store: Store) -> None:
        """A task that expired before its eta will never be due."""
        await store.add(eta=await store.later(60), expires_at=await store.later(10))
        await store.advance(10)
        assert await store.wait() is None

    @pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.UNKNOWN_FUNCTION])
    async def test_wait_counts_a_delayed_return(self, store: Store, kind: OutcomeKind) -> None:
        """A task put back with a delay is due after it, not before."""
        task = await store.taken()
        now = await store.now()
        assert await store.end(kind, task.lease, 12.0)
        assert store.same((await store.info(task.id)).eta, now + timedelta(seconds=12))
        assert await store.wait() == pytest.approx(12, abs=store.tick)
        async with store.just_before(12):
            assert await store.take() == []
        assert await store.take_ids() == [task.id]

    async def test_callers_at_once_get_different_tasks(self, store: Store) -> None:
        """Fifty callers get each task once, and leave none."""
        ids = await store.add_many(120)
        taken = await at_once([partial(store.take_ids, 3)] * 50)
        assert sorted(chain(*taken)) == sorted(ids)

    async def test_two_instances_get_different_tasks(self, store: Store, peer: Store) -> None:
        """So do callers of two instances."""
        ids = await store.add_many(40)
        taken = await at_once([partial(each.take_ids, 4) for each in (store, peer) * 6])
        assert sorted(chain(*taken)) == sorted(ids)

    async def test_a_clock_that_jumps_back_starts_nothing_early(
        self, store: Store, clock: FakeClock
    ) -> None:
        """After a jump back, what is not due yet is pending, and what was taken stays taken."""
        if abs(await store.now() - clock.now()) > timedelta(seconds=1):
            pytest.skip("this store has a time of its own")
        task_id = await store.add(eta=await store.later(10))
        running = await store.add()
        assert await store.take_ids() == [running]
        await store.advance(5)
        clock.jump(-3600)
        assert await store.take() == []
        assert await store.wait() == pytest.approx(3605)
        clock.jump(3600)
        await store.advance(5)
        assert await store.take_ids() == [task_id]
