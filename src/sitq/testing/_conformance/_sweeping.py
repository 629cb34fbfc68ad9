"""Checks of what becomes due with time: reclaiming, expiring, pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sitq.errors import TaskNotFoundError
from sitq.models import OutcomeKind, Progress, RetryPolicy
from sitq.protocols import Sweep
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import LEASE, Store, Suite

if TYPE_CHECKING:
    from sitq.ids import TaskId

__all__ = ["SweepChecks"]

NOTHING = Sweep(0, 0, 0)


class SweepChecks(Suite):
    """`Backend.sweep`, `Backend.prune`."""

    async def test_a_lease_is_reclaimed_when_it_ends(self, store: Store) -> None:
        """At its end, not before, the task is pending as it was, with one crash more."""
        task = await store.taken(retry=RetryPolicy(max_attempts=1), eta=await store.now())
        assert await store.set_progress(task.lease, Progress(done=1))
        async with store.just_before(LEASE):
            assert await store.sweep(3) == NOTHING
        assert await store.sweep(3) == Sweep(1, 0, 0)
        info = await store.info(task.id)
        assert (info.status, info.attempts, info.crashes) == (TaskStatus.PENDING, 0, 1)
        assert (info.eta, info.progress, info.error) == (task.eta, None, None)
        assert await store.sweep(3) == NOTHING
        again = await store.take_one()
        assert (again.id, again.epoch, again.attempt) == (task.id, 2, 1)

    async def test_the_length_of_a_lease_is_the_callers(self, store: Store) -> None:
        """Each reservation says how long its leases are."""
        short, long = await store.add(), await store.add()
        assert await store.take_ids(1, lease=0.5) == [short]
        assert await store.take_ids(1, lease=7200.0) == [long]
        await store.advance(0.5)
        assert await store.reclaim() == 1
        await store.advance(7199)
        assert await store.reclaim() == 0
        await store.advance(0.5)
        assert await store.reclaim() == 1

    async def test_too_many_crashes_fail_a_task_as_lost(self, store: Store) -> None:
        """The crash that reaches the cap ends the task, and its error says why."""
        task_id = await store.add()
        for crash in (1, 2, 3):
            assert await store.status(task_id) is TaskStatus.PENDING
            assert len(await store.take()) == 1
            await store.advance(LEASE)
            assert await store.reclaim() == 1
            assert (await store.info(task_id)).crashes == crash
        result = await store.result(task_id)
        assert (result.status, result.attempts) == (TaskStatus.FAILED, 0)
        assert "lost" in str(result.error).lower()
        assert (result.value, result.traceback) == (None, None)
        assert store.same(result.finished_at, await store.now())

    async def test_the_cap_is_that_of_the_sweep(self, store: Store) -> None:
        """With a cap of 1 the first crash fails the task; with a high cap many do not."""
        task_id = await store.add()
        for _ in range(4):
            await store.crash(100)
        assert await store.status(task_id) is TaskStatus.PENDING
        await store.crash(1)
        assert await store.status(task_id) is TaskStatus.FAILED

    async def test_crashes_are_kept_through_other_ends(self, store: Store) -> None:
        """A release or a retry in between does not reset the number of crashes."""
        task_id = await store.add()
        await store.crash(2)
        for kind in (OutcomeKind.RELEASE, OutcomeKind.RETRY, OutcomeKind.UNKNOWN_FUNCTION):
            task = await store.take_one()
            await store.end(kind, task.lease)
            assert (await store.info(task_id)).crashes == 1
        await store.crash(2)
        assert await store.status(task_id) is TaskStatus.FAILED

    async def test_a_crash_keeps_the_error_of_the_attempt_before(self, store: Store) -> None:
        """`TaskInfo` still has the error of the failed attempt after a crash."""
        task = await store.taken()
        await store.end(OutcomeKind.RETRY, task.lease)
        await store.crash()
        info = await store.info(task.id)
        assert (info.attempts, info.error) == (1, "ValueError: again")

    @pytest.mark.parametrize("max_crashes", [1, 3])
    async def test_a_crash_of_a_task_asked_to_end_cancels_it(
        self, store: Store, max_crashes: int
    ) -> None:
        """It never starts again. At the cap it is cancelled, not failed."""
        task = await store.taken()
        await store.cancel(task.id)
        await store.advance(LEASE)
        assert await store.reclaim(max_crashes) == 1
        result = await store.result(task.id)
        assert (result.status, result.error) == (TaskStatus.CANCELLED, None)
        assert await store.take() == []

    async def test_what_expired_is_final(self, store: Store) -> None:
        """At ``expires_at``, not before, a pending task becomes expired."""
        task_id = await store.add(expires_at=await store.later(10))
        async with store.just_before(10):
            assert await store.sweep(3) == NOTHING
        now = await store.now()
        assert await store.sweep(3) == Sweep(0, 1, 0)
        result = await store.result(task_id)
        assert (result.status, result.attempts) == (TaskStatus.EXPIRED, 0)
        assert (result.value, result.error, result.started_at) == (None, None, None)
        assert store.same(result.finished_at, now)
        assert await store.sweep(3) == NOTHING

    async def test_a_retry_that_comes_too_late_expires(self, store: Store) -> None:
        """A task that was put back expires like one that never started."""
        task = await store.taken(expires_at=await store.later(10))
        await store.end(OutcomeKind.RETRY, task.lease, 60.0)
        await store.advance(10)
        assert (await store.sweep(3)).expired == 1
        result = await store.result(task.id)
        assert (result.status, result.attempts) == (TaskStatus.EXPIRED, 1)

    @pytest.mark.parametrize("ttl", [0.0, 60.0])
    async def test_a_task_is_gone_after_its_retention(self, store: Store, ttl: float) -> None:
        """A result is readable for ``result_ttl`` after the end; then the whole task is removed."""
        task = await store.taken(result_ttl=ttl)
        assert await store.end(OutcomeKind.SUCCESS, task.lease)
        if ttl:
            async with store.just_before(ttl):
                assert await store.sweep(3) == NOTHING
                assert (await store.result(task.id)).value == b"value"
        assert await store.sweep(3) == Sweep(0, 0, 1)
        await self._is_gone(store, task.id)
        assert await store.sweep(3) == NOTHING

    @staticmethod
    async def _is_gone(store: Store, task_id: TaskId[Any]) -> None:
        assert await store.get_tasks([task_id]) == [None]
        assert await store.get_results([task_id]) == {}
        with pytest.raises(TaskNotFoundError):
            await store.load_task(task_id)
        with pytest.raises(TaskNotFoundError):
            await store.cancel(task_id)

    async def test_only_final_tasks_are_pruned(self, store: Store) -> None:
        """A task that is not final stays, even with a retention of 0."""
        waiting = await store.add(result_ttl=0.0, eta=await store.later(5000))
        running = await store.taken(result_ttl=0.0)
        await store.advance(LEASE - 1)
        assert await store.sweep(3) == NOTHING
        assert await store.prune(0) == 0
        assert await store.status(waiting) is TaskStatus.PENDING
        assert await store.status(running.id) is TaskStatus.IN_PROGRESS

    async def test_the_oldest_of_each_kind_go_first(self, store: Store) -> None:
        """A sweep takes up to its limit of each kind: those that became due first."""
        ages = (5.0, 3.0, 4.0)
        ended, expiring, running = [], [], []
        for age in ages:
            task = await store.taken(result_ttl=age)
            await store.end(OutcomeKind.SUCCESS, task.lease)
            ended.append(task.id)
        for age in ages:
            expiring.append(await store.add(queue="other", expires_at=await store.later(age)))
            running.append(await store.add())
            assert await store.take_ids(lease=age) == running[-1:]
        await store.advance(10)
        for number in (1, 2, 0):
            assert await store.sweep(3, 1) == Sweep(1, 1, 1)
            assert await store.status(running[number]) is TaskStatus.PENDING
            assert await store.status(expiring[number]) is TaskStatus.EXPIRED
            assert await store.get_tasks([ended[number]]) == [None]
        assert await store.sweep(3, 1) == NOTHING

    async def test_one_sweep_does_all_three(self, store: Store) -> None:
        """One call reclaims, expires and prunes, and counts each."""
        done = await store.taken(result_ttl=1.0)
        await store.end(OutcomeKind.FAILURE, done.lease)
        await store.taken()
        await store.add(expires_at=await store.later(1))
        await store.add(expires_at=await store.later(1))
        await store.advance(LEASE)
        assert await store.sweep(3) == Sweep(1, 2, 1)

    async def test_prune_goes_by_age(self, store: Store) -> None:
        """`prune` removes tasks that ended so long ago, and no others, whatever their retention."""
        task = await store.taken(result_ttl=9e6)
        await store.end(OutcomeKind.FAILURE, task.lease)
        async with store.just_before(50):
            assert await store.prune(50) == 0
        assert await store.prune(50) == 1
        await self._is_gone(store, task.id)
        assert await store.prune(50) == 0

    async def test_prune_takes_the_earliest_ends_first(self, store: Store) -> None:
        """The limit holds, and every kind of end is removed."""
        failed = await store.taken()
        cancelled, expired = await store.add(), await store.add(expires_at=await store.later(1))
        ends = [expired, failed.id, cancelled]
        await store.advance(1)
        await store.sweep(3)
        await store.advance(1)
        await store.end(OutcomeKind.FAILURE, failed.lease)
        await store.advance(1)
        await store.cancel(cancelled)
        for task_id in ends:
            assert await store.prune(0, 1) == 1
            assert await store.get_tasks([task_id]) == [None]
        assert await store.prune(0) == 0
