"""Checks of how attempts end, and that only the current epoch ends one."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sitq.ids import new_task_id
from sitq.models import Lease, LeaseState, Outcome, OutcomeKind, Progress, RetryPolicy
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import (
    ENDS,
    LEASE,
    PUTS_BACK,
    Store,
    Suite,
    at_once,
    make_outcome,
)

if TYPE_CHECKING:
    from sitq.ids import TaskId

__all__ = ["FinishChecks"]

_EPOCHS = range(-1, 7)


class FinishChecks(Suite):
    """`Backend.finish`."""

    @pytest.mark.parametrize("kind", ENDS)
    async def test_an_end_is_stored_with_its_result(self, store: Store, kind: OutcomeKind) -> None:
        """Status, value or error, and times are stored together."""
        task = await store.taken()
        started = await store.now()
        assert await store.get_results([task.id]) == {task.id: None}
        await store.advance(2)
        now = await store.now()
        assert await store.end(kind, task.lease)
        result, info = await store.result(task.id), await store.info(task.id)
        assert result.status is info.status is ENDS[kind]
        assert result.value == (b"value" if kind is OutcomeKind.SUCCESS else None)
        failed = kind is OutcomeKind.FAILURE
        assert result.error == info.error == ("ValueError: no" if failed else None)
        assert result.traceback == ("the frames" if failed else None)
        assert (result.task_id, result.function) == (task.id, task.function)
        assert result.attempts == info.attempts == 1
        assert store.same(result.started_at, started)
        assert store.same(result.finished_at, now)
        assert (result.enqueued_at, result.finished_at) == (info.enqueued_at, info.finished_at)

    @pytest.mark.parametrize("value", [b"", b"\0", b"\0a\0", b"y" * 1_000_000])
    async def test_a_value_is_any_bytes(self, store: Store, value: bytes) -> None:
        """Values come back byte by byte, also from the middle of a batch."""
        await store.add_many(3)
        leases = [task.lease for task in await store.take()]
        values = [b"before", value, b"after"]
        outcomes = [Outcome.success(*pair) for pair in zip(leases, values, strict=True)]
        assert await store.finish(outcomes) == [True] * 3
        results = await store.get_results([lease.task_id for lease in leases])
        assert [result and result.value for result in results.values()] == values

    async def test_a_retry_keeps_the_error_and_the_attempt(self, store: Store) -> None:
        """A retry is pending with a later eta; its error is readable until an attempt succeeds."""
        task = await store.taken()
        now = await store.now()
        assert await store.end(OutcomeKind.RETRY, task.lease, 5.5)
        info = await store.info(task.id)
        assert (info.status, info.attempts) == (TaskStatus.PENDING, 1)
        assert info.error == "ValueError: again"
        assert store.same(info.eta, now + timedelta(seconds=5.5))
        assert info.finished_at is None
        assert await store.get_results([task.id]) == {task.id: None}
        await store.advance(5.5)
        again = await store.take_one()
        assert (again.epoch, again.attempt) == (2, 2)
        assert (await store.info(task.id)).error == "ValueError: again"
        assert await store.end(OutcomeKind.SUCCESS, again.lease)
        result = await store.result(task.id)
        assert (result.error, result.traceback, result.attempts) == (None, None, 2)
        assert (await store.info(task.id)).error is None

    async def test_attempts_end_with_the_policy_of_the_task(self, store: Store) -> None:
        """A retry after the last attempt of the task's own policy is a failure."""
        task = await store.taken(retry=RetryPolicy(max_attempts=2))
        assert await store.end(OutcomeKind.RETRY, task.lease)
        again = await store.take_one()
        assert await store.end(OutcomeKind.RETRY, again.lease, 5.0)
        result = await store.result(task.id)
        assert (result.status, result.attempts) == (TaskStatus.FAILED, 2)
        assert (result.error, result.traceback) == ("ValueError: again", "the frames")
        await store.advance(6)
        assert await store.take() == []

    async def test_without_a_policy_the_worker_decides(self, store: Store) -> None:
        """A task without a policy of its own is retried as often as its worker reports a retry."""
        task_id = await store.add()
        for turn in range(1, 9):
            task = await store.take_one()
            assert task.attempt == turn
            assert await store.end(OutcomeKind.RETRY, task.lease)
        assert await store.status(task_id) is TaskStatus.PENDING

    async def test_a_release_spends_no_attempt(self, store: Store) -> None:
        """A released task is pending as it was, after any number of releases."""
        eta = await store.now() - timedelta(seconds=30)
        task_id = await store.add(eta=eta, retry=RetryPolicy(max_attempts=1))
        for epoch in (1, 2, 3):
            task = await store.take_one()
            assert (task.epoch, task.attempt, task.unknown_function_count) == (epoch, 1, 0)
            assert await store.end(OutcomeKind.RELEASE, task.lease)
            info = await store.info(task_id)
            assert (info.status, info.attempts, info.eta) == (TaskStatus.PENDING, 0, eta)
            assert info.error is None

    async def test_a_release_keeps_the_error_of_the_attempt_before(self, store: Store) -> None:
        """A later attempt that is released does not remove the error."""
        task = await store.taken()
        await store.end(OutcomeKind.RETRY, task.lease)
        again = await store.take_one()
        assert await store.end(OutcomeKind.RELEASE, again.lease)
        info = await store.info(task.id)
        assert (info.attempts, info.error) == (1, "ValueError: again")

    async def test_an_unknown_function_is_counted_and_spends_no_attempt(self, store: Store) -> None:
        """Each such outcome delays the task, and the next reservation has their number."""
        task_id = await store.add()
        for count in (0, 1, 2):
            task = await store.take_one()
            assert (task.unknown_function_count, task.attempt) == (count, 1)
            now = await store.now()
            assert await store.end(OutcomeKind.UNKNOWN_FUNCTION, task.lease, 3.0)
            info = await store.info(task_id)
            assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)
            assert store.same(info.eta, now + timedelta(seconds=3))
            await store.advance(3)

    @pytest.mark.parametrize("kind", OutcomeKind)
    async def test_only_the_current_epoch_is_heard(self, store: Store, kind: OutcomeKind) -> None:
        """Of all epochs ever issued, and others, exactly the current one ends the attempt."""
        task_id = await store.add()
        for _ in range(3):
            task = await store.take_one()
            assert await store.end(OutcomeKind.RELEASE, task.lease)
        pending = await store.picture(task_id)
        await self._all_refused(store, task_id, kind, _EPOCHS)
        assert await store.picture(task_id) == pending
        task = await store.take_one()
        running = await store.picture(task_id)
        await self._all_refused(store, task_id, kind, set(_EPOCHS) - {4})
        assert await store.picture(task_id) == running
        assert await store.end(kind, task.lease)
        ended = await store.picture(task_id)
        assert ended != running
        await self._all_refused(store, task_id, kind, _EPOCHS)
        assert await store.picture(task_id) == ended

    @staticmethod
    async def _all_refused(
        store: Store, task_id: TaskId[Any], kind: OutcomeKind, epochs: range | set[int]
    ) -> None:
        outcomes = [
            Outcome(task_id=task_id, epoch=epoch, kind=kind, value=b"late", error="late")
            for epoch in epochs
        ]
        assert await store.finish(outcomes) == [False] * len(outcomes)
        for outcome in outcomes:
            assert await store.finish([outcome]) == [False]

    @pytest.mark.parametrize("first", ENDS)
    async def test_an_end_never_changes(self, store: Store, first: OutcomeKind) -> None:
        """After a final outcome, no outcome of any kind changes the task."""
        task = await store.taken()
        assert await store.end(first, task.lease)
        before = await store.picture(task.id)
        await store.advance(1)
        for kind in OutcomeKind:
            assert not await store.end(kind, task.lease)
        assert await store.picture(task.id) == before

    @pytest.mark.parametrize("kind", OutcomeKind)
    async def test_a_batch_is_answered_one_by_one(self, store: Store, kind: OutcomeKind) -> None:
        """A refused outcome does not affect the others; of two for one lease the first counts."""
        ids = await store.add_many(3)
        one, two, three = [task.lease for task in await store.take()]
        leases = [one, Lease(new_task_id(), 1), two, Lease(three.task_id, 7), one, three]
        outcomes = [make_outcome(kind, lease, 60.0) for lease in leases]
        answers = await store.finish(outcomes)
        assert answers == [True, False, True, False, False, True]
        statuses = {await store.status(task_id) for task_id in ids}
        assert statuses == {ENDS.get(kind, TaskStatus.PENDING)}

    async def test_a_batch_may_mix_all_kinds(self, store: Store) -> None:
        """Each outcome of a batch does what its kind says."""
        await store.add_many(len(OutcomeKind))
        taken = await store.take()
        kinds = dict(zip(OutcomeKind, taken, strict=True))
        outcomes = [make_outcome(kind, task.lease) for kind, task in kinds.items()]
        assert await store.finish(outcomes) == [True] * len(OutcomeKind)
        for kind, task in kinds.items():
            assert await store.status(task.id) is ENDS.get(kind, TaskStatus.PENDING)
        assert await store.finish([]) == []

    async def test_of_callers_at_once_one_is_heard(self, store: Store) -> None:
        """An outcome that is reported many times at once is accepted once."""
        task = await store.taken()
        answers = await at_once([partial(store.end, OutcomeKind.SUCCESS, task.lease)] * 10)
        assert sorted(answers) == [False] * 9 + [True]

    @pytest.mark.parametrize("kind", OutcomeKind)
    async def test_the_lease_ends_with_the_outcome(self, store: Store, kind: OutcomeKind) -> None:
        """Afterwards it cannot be renewed, stores no progress, and is not reclaimed."""
        task = await store.taken()
        assert await store.end(kind, task.lease)
        assert await store.renew([task.lease]) == [LeaseState.LOST]
        assert not await store.set_progress(task.lease, Progress(done=1))
        await store.advance(LEASE)
        assert await store.reclaim() == 0
        assert (await store.info(task.id)).crashes == 0

    async def test_an_outcome_after_the_lease_counts_until_it_is_reclaimed(
        self, store: Store
    ) -> None:
        """A lease that has run out is current until the task is reclaimed."""
        one, two = await store.add(), await store.add(priority=-1)
        taken = {task.id: task.lease for task in await store.take()}
        await store.advance(LEASE)
        assert await store.end(OutcomeKind.SUCCESS, taken[one])
        assert await store.reclaim() == 1
        assert not await store.end(OutcomeKind.SUCCESS, taken[two])
        assert await store.status(two) is TaskStatus.PENDING

    @pytest.mark.parametrize("kind", OutcomeKind)
    async def test_a_task_asked_to_end_does_not_come_back(
        self, store: Store, kind: OutcomeKind
    ) -> None:
        """An outcome that would put it back cancels it; a success or failure stands."""
        task = await store.taken()
        assert await store.cancel(task.id)
        assert await store.end(kind, task.lease, 1.0)
        info, result = await store.info(task.id), await store.result(task.id)
        assert info.status is result.status is ENDS.get(kind, TaskStatus.CANCELLED)
        assert result.attempts == 1
        if kind in PUTS_BACK:
            assert (result.value, result.error, result.traceback) == (None, None, None)
        await store.advance(2)
        assert await store.take() == []
