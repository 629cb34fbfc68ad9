"""Checks of cancelling tasks, of progress, and of what can be read of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sitq.errors import TaskNotFoundError
from sitq.ids import new_task_id
from sitq.models import Lease, LeaseState, OutcomeKind, Progress
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import ENDS, LEASE, Store, Suite, new_task

if TYPE_CHECKING:
    from sitq.ids import TaskId

__all__ = ["CancelChecks", "ReadChecks"]


class CancelChecks(Suite):
    """`Backend.cancel`."""

    async def test_a_pending_task_is_cancelled_at_once(self, store: Store) -> None:
        """It is final, has a result, and never starts."""
        task_id = await store.add()
        now = await store.now()
        assert await store.cancel(task_id) is True
        result = await store.result(task_id)
        assert (result.status, result.attempts) == (TaskStatus.CANCELLED, 0)
        assert (result.value, result.error, result.started_at) == (None, None, None)
        assert store.same(result.finished_at, now)
        assert await store.take() == []
        assert await store.wait() is None

    async def test_a_task_that_waits_for_a_retry_is_cancelled_at_once(self, store: Store) -> None:
        """It is pending too. Its result has no error of the last attempt."""
        task = await store.taken()
        await store.end(OutcomeKind.RETRY, task.lease, 5.0)
        assert await store.cancel(task.id) is True
        result = await store.result(task.id)
        assert (result.status, result.attempts) == (TaskStatus.CANCELLED, 1)
        assert result.error is result.traceback is None
        await store.advance(5)
        assert await store.take() == []

    async def test_a_running_task_is_asked_to_end(self, store: Store) -> None:
        """It runs on, its lease keeper reports the request, and a second request is fine."""
        task = await store.taken()
        assert await store.cancel(task.id) is True
        assert await store.cancel(task.id) is True
        info = await store.info(task.id)
        assert (info.status, info.cancel_requested) == (TaskStatus.IN_PROGRESS, True)
        assert await store.get_results([task.id]) == {task.id: None}
        assert await store.renew([task.lease]) == [LeaseState.CANCEL_REQUESTED]
        assert await store.end(OutcomeKind.CANCELLED, task.lease)
        assert await store.status(task.id) is TaskStatus.CANCELLED

    @pytest.mark.parametrize("kind", ENDS)
    async def test_a_task_that_ended_is_not_cancelled(
        self, store: Store, kind: OutcomeKind
    ) -> None:
        """`cancel` is False for it and changes nothing."""
        task = await store.taken()
        await store.end(kind, task.lease)
        await self._is_left_alone(store, task.id)

    async def test_a_task_that_expired_is_not_cancelled(self, store: Store) -> None:
        """`cancel` is False for it and changes nothing."""
        task_id = await store.add(expires_at=await store.later(1))
        await store.advance(1)
        await store.sweep(3)
        await self._is_left_alone(store, task_id)

    @staticmethod
    async def _is_left_alone(store: Store, task_id: TaskId[Any]) -> None:
        before = await store.picture(task_id)
        await store.advance(1)
        assert await store.cancel(task_id) is False
        assert await store.picture(task_id) == before

    async def test_an_unknown_task_cannot_be_cancelled(self, store: Store) -> None:
        """`cancel` of an unknown id raises `TaskNotFoundError`."""
        with pytest.raises(TaskNotFoundError):
            await store.cancel(new_task_id())


class ReadChecks(Suite):
    """`Backend.set_progress`, `Backend.get_tasks`, `Backend.get_results`."""

    async def test_progress_is_that_of_the_running_attempt(self, store: Store) -> None:
        """It is readable while the attempt runs, and removed when the attempt ends."""
        task = await store.taken()
        assert (await store.info(task.id)).progress is None
        for progress in (Progress(done=0), Progress(done=3, total=9, note="a 'third' ✓")):
            assert await store.set_progress(task.lease, progress) is True
            assert (await store.info(task.id)).progress == progress
        await store.end(OutcomeKind.RETRY, task.lease)
        assert (await store.info(task.id)).progress is None
        await store.take()
        assert (await store.info(task.id)).progress is None

    async def test_progress_of_another_epoch_is_refused(self, store: Store) -> None:
        """Of all epochs ever issued, and others, only the current one stores progress."""
        task = await store.taken()
        await store.end(OutcomeKind.RELEASE, task.lease)
        late = Progress(done=99)
        for epoch in range(4):
            assert await store.set_progress(Lease(task.id, epoch), late) is False
        task = await store.take_one()
        mine = Progress(done=1)
        assert await store.set_progress(task.lease, mine) is True
        for epoch in (0, 1, 3):
            assert await store.set_progress(Lease(task.id, epoch), late) is False
        assert (await store.info(task.id)).progress == mine
        assert await store.set_progress(Lease(new_task_id(), 1), late) is False
        await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.set_progress(task.lease, late) is False

    async def test_progress_renews_no_lease(self, store: Store) -> None:
        """Only a lease keeper does."""
        task = await store.taken()
        await store.advance(LEASE / 2)
        assert await store.set_progress(task.lease, Progress(done=1))
        await store.advance(LEASE / 2)
        assert await store.reclaim() == 1

    async def test_tasks_are_read_in_order(self, store: Store) -> None:
        """There is one answer for each id, also for an unknown one and for one given twice."""
        one, two = await store.enqueue([new_task(), new_task()])
        unknown = new_task_id()
        infos = await store.get_tasks([two, unknown, one, two])
        assert [info and info.task_id for info in infos] == [two, None, one, two]
        assert await store.get_tasks([]) == []

    async def test_results_are_read_by_id(self, store: Store) -> None:
        """An unknown id is left out; a task that is not final has ``None``."""
        done = await store.taken()
        await store.end(OutcomeKind.SUCCESS, done.lease)
        waiting = await store.add()
        results = await store.get_results([waiting, new_task_id(), done.id, done.id])
        assert set(results) == {waiting, done.id}
        assert results[waiting] is None
        assert results[done.id] == await store.result(done.id)
        assert await store.get_results([]) == {}

    async def test_what_one_instance_writes_another_reads(self, store: Store, peer: Store) -> None:
        """Tasks, unique keys, leases and results belong to the store, not to the instance."""
        task = await store.taken(unique_key="k")
        assert await peer.info(task.id) == await store.info(task.id)
        assert await peer.add(unique_key="k") == task.id
        assert await peer.cancel(task.id)
        assert await peer.renew([task.lease]) == [LeaseState.CANCEL_REQUESTED]
        assert await peer.end(OutcomeKind.SUCCESS, task.lease)
        assert not await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.result(task.id) == await peer.result(task.id)
