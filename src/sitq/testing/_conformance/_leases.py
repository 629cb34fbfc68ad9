"""Checks of lease keepers: heartbeats from a thread, while the event loop may be blocked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from sitq.ids import new_task_id
from sitq.models import Lease, LeaseState, OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import LEASE, PATIENCE, Store, Suite

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LeaseChecks"]


class LeaseChecks(Suite):
    """`LeaseKeeper`."""

    async def test_a_renewed_lease_ends_later(self, store: Store) -> None:
        """It ends so many seconds after the renewal, not before and not later."""
        task = await store.taken()
        await store.advance(LEASE - 1)
        assert await store.renew([task.lease], 50.0) == [LeaseState.HELD]
        async with store.just_before(50):
            assert await store.reclaim() == 0
        assert await store.reclaim() == 1

    async def test_a_keeper_with_nothing_to_renew_makes_itself_ready(self, store: Store) -> None:
        """It renews no lease, and works afterwards."""
        task = await store.taken()
        assert await store.renew([], 50.0) == []
        await store.advance(LEASE)
        assert await store.reclaim() == 1
        assert await store.renew([task.lease]) == [LeaseState.LOST]

    async def test_a_renewal_may_shorten_a_lease(self, store: Store) -> None:
        """The seconds count from now, whatever time was left."""
        task = await store.taken()
        assert await store.renew([task.lease], 2.0) == [LeaseState.HELD]
        await store.advance(2)
        assert await store.reclaim() == 1

    async def test_a_lease_that_ran_out_is_current_until_it_is_reclaimed(
        self, store: Store
    ) -> None:
        """A late heartbeat saves a task that has not been reclaimed."""
        task = await store.taken()
        await store.advance(LEASE * 2)
        assert await store.renew([task.lease]) == [LeaseState.HELD]
        assert await store.reclaim() == 0
        await store.advance(LEASE)
        assert await store.reclaim() == 1
        assert await store.renew([task.lease]) == [LeaseState.LOST]

    async def test_each_lease_is_answered_in_order(self, store: Store) -> None:
        """One call can have all answers; the leases that are not lost are renewed."""
        await store.add_many(3)
        held, asked, done = [task.lease for task in await store.take()]
        await store.cancel(asked.task_id)
        await store.end(OutcomeKind.SUCCESS, done)
        unknown, stale = Lease(new_task_id(), 1), Lease(held.task_id, 2)
        await store.advance(LEASE - 1)
        assert await store.renew([unknown, asked, done, held, stale, held]) == [
            LeaseState.LOST,
            LeaseState.CANCEL_REQUESTED,
            LeaseState.LOST,
            LeaseState.HELD,
            LeaseState.LOST,
            LeaseState.HELD,
        ]
        await store.advance(LEASE - 1)
        assert await store.reclaim() == 0
        await store.advance(1)
        assert await store.reclaim() == 2
        assert await store.renew([]) == []

    async def test_only_the_current_epoch_is_renewed(self, store: Store) -> None:
        """Of all epochs ever issued, and others, exactly the current one keeps the lease."""
        task_id = await store.add()
        every = [Lease(task_id, epoch) for epoch in range(5)]
        for _ in range(2):
            task = await store.take_one()
            await store.end(OutcomeKind.RELEASE, task.lease)
        assert await store.renew(every) == [LeaseState.LOST] * 5
        assert await store.status(task_id) is TaskStatus.PENDING
        task = await store.take_one()
        others = [lease for lease in every if lease != task.lease]
        assert await store.renew(others, 500.0) == [LeaseState.LOST] * 4
        await store.advance(LEASE - 1)
        assert await store.renew(every) == [LeaseState.LOST] * 3 + [
            LeaseState.HELD,
            LeaseState.LOST,
        ]
        await store.advance(LEASE)
        assert await store.reclaim() == 1
        assert await store.renew(every) == [LeaseState.LOST] * 5

    @pytest.mark.parametrize("kind", OutcomeKind)
    async def test_an_old_holder_does_not_renew_the_next_attempt(
        self, store: Store, kind: OutcomeKind
    ) -> None:
        """A heartbeat after the outcome, of whatever kind, finds the lease lost."""
        task = await store.taken()
        await store.end(kind, task.lease)
        await store.take()
        assert await store.renew([task.lease], 500.0) == [LeaseState.LOST]
        await store.advance(LEASE)
        returned = kind in {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}
        assert await store.reclaim() == returned

    async def test_leases_are_renewed_while_the_loop_is_blocked(self, store: Store) -> None:
        """A keeper does not use the event loop, from its creation to its end."""
        task = await store.taken()
        states: list[LeaseState] = []

        def beat() -> None:
            keeper = store.backend.lease_keeper()
            states.extend(keeper.renew([task.lease], LEASE))
            states.extend(keeper.renew([task.lease], LEASE))
            keeper.close()

        _block_the_loop(beat)
        assert states == [LeaseState.HELD] * 2

    async def test_a_keeper_is_closed_twice_without_harm(self, store: Store) -> None:
        """Closing it again, or without use, does nothing; another keeper still works."""
        task = await store.taken()

        def close_twice() -> None:
            for leases in ([], [task.lease]):
                keeper = store.backend.lease_keeper()
                if leases:
                    keeper.renew(leases, LEASE)
                keeper.close()
                keeper.close()

        _block_the_loop(close_twice)
        assert await store.renew([task.lease]) == [LeaseState.HELD]


def _block_the_loop(function: Callable[[], None]) -> None:
    """Run a function in a thread while the event loop stands still."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised in the check's own thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for the event loop"
    if errors:
        raise errors[0]
