"""Checks of unique keys: who holds one, and until when."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import pytest

from sitq.models import OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import ENDS, LEASE, PUTS_BACK, Store, Suite, at_once, new_task

__all__ = ["UniqueKeyChecks"]


class UniqueKeyChecks(Suite):
    """`Backend.enqueue` of tasks with a ``unique_key``."""

    async def test_a_key_that_is_held_gives_the_holder(self, store: Store) -> None:
        """While its holder is pending or in progress, no other task with the key is stored."""
        holder = await store.add(unique_key="k")
        second, other = new_task(unique_key="k"), new_task(unique_key="K")
        assert await store.enqueue([second, other]) == [holder, other.id]
        await store.take()
        third = new_task(unique_key="k")
        assert await store.enqueue([third]) == [holder]
        assert await store.get_tasks([second.id, third.id]) == [None, None]

    async def test_a_key_twice_in_a_batch_stores_the_first(self, store: Store) -> None:
        """An earlier task of the same batch holds the key too."""
        first, plain = new_task(unique_key="k"), new_task()
        batch = [first, plain, new_task(unique_key="k"), new_task(unique_key="k")]
        assert await store.enqueue(batch) == [first.id, plain.id, first.id, first.id]
        assert await store.take_ids() == [first.id, plain.id]

    async def test_keys_do_not_change_the_order_of_a_batch(self, store: Store) -> None:
        """Tasks with keys are answered, and run, in the order in which they were given."""
        tasks = [new_task(unique_key=key) for key in ("c", "a", None, "B", "b", "aa")]
        ids = [task.id for task in tasks]
        assert await store.enqueue(tasks) == ids
        assert await store.take_ids() == ids

    async def test_a_holder_that_is_enqueued_again_is_its_own_holder(self, store: Store) -> None:
        """A task with a key may be enqueued again after an `UnknownOutcomeError`."""
        task = new_task(unique_key="k")
        assert await store.enqueue([task]) == [task.id]
        assert await store.enqueue([task]) == [task.id]
        assert len(await store.take()) == 1

    @pytest.mark.parametrize("kind", PUTS_BACK)
    async def test_a_task_put_back_still_holds_its_key(
        self, store: Store, kind: OutcomeKind
    ) -> None:
        """A key is held through all attempts."""
        task = await store.taken(unique_key="k")
        assert await store.end(kind, task.lease, 5.0)
        assert await store.add(unique_key="k") == task.id

    @pytest.mark.parametrize("kind", ENDS)
    async def test_an_end_frees_the_key(self, store: Store, kind: OutcomeKind) -> None:
        """Once its holder is final, a key is free for one other task."""
        task = await store.taken(unique_key="k")
        assert await store.end(kind, task.lease)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert await store.add(unique_key="k") == new

    async def test_cancelling_and_expiring_free_the_key(self, store: Store) -> None:
        """A key is free also after an end without an attempt."""
        first = await store.add(unique_key="k")
        await store.cancel(first)
        second = await store.add(unique_key="k", expires_at=await store.later(10))
        assert second != first
        await store.advance(10)
        await store.sweep(3)
        assert await store.add(unique_key="k") not in {first, second}

    async def test_callers_at_once_get_one_holder(self, store: Store) -> None:
        """Of many callers with one key, one stores, and all get its id."""
        ids = await at_once([partial(store.add, unique_key="k")] * 20)
        assert len(ids) == 20
        assert set(ids) == {(await store.take_one()).id}

    async def test_a_holder_past_its_expiry_gives_way(self, store: Store) -> None:
        """A pending one expires when the new task is stored, not before."""
        old = await store.add(unique_key="k", expires_at=await store.later(10))
        async with store.just_before(10):
            assert await store.add(unique_key="k") == old
        now = await store.now()
        new = await store.add(unique_key="k")
        assert new != old
        result = await store.result(old)
        assert (result.status, result.attempts) == (TaskStatus.EXPIRED, 0)
        assert store.same(result.finished_at, now)
        assert await store.take_ids() == [new]
        assert await store.add(unique_key="k") == new

    async def test_a_holder_that_expired_is_final_at_once(self, store: Store) -> None:
        """Its error is removed and its retention begins, as in a sweep."""
        expires_at = await store.later(10)
        task = await store.taken(unique_key="k", expires_at=expires_at, result_ttl=5.0)
        assert await store.end(OutcomeKind.RETRY, task.lease)
        await store.advance(10)
        await store.add(unique_key="k")
        result = await store.result(task.id)
        assert (result.status, result.error) == (TaskStatus.EXPIRED, None)
        assert (await store.sweep(3)).expired == 0
        await store.advance(5)
        assert (await store.sweep(3)).pruned == 1

    async def test_a_running_holder_past_its_expiry_keeps_its_key(self, store: Store) -> None:
        """It started in time, and its lease has not ended."""
        task = await store.taken(unique_key="k", expires_at=await store.later(10))
        await store.advance(LEASE - store.tick)
        assert await store.add(unique_key="k") == task.id

    async def test_a_lost_holder_past_its_expiry_gives_up_its_key(self, store: Store) -> None:
        """It never starts again. If its worker reports an outcome, that counts."""
        task = await store.taken(unique_key="k", expires_at=await store.later(10))
        await store.advance(LEASE)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert await store.status(task.id) is TaskStatus.IN_PROGRESS
        assert await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.add(unique_key="k") == new

    async def test_a_lost_holder_that_may_start_again_keeps_its_key(self, store: Store) -> None:
        """Before its expiry, the end of a lease frees no key."""
        task = await store.taken(unique_key="k", expires_at=await store.later(2 * LEASE))
        await store.advance(LEASE)
        assert await store.add(unique_key="k") == task.id

    @pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.UNKNOWN_FUNCTION])
    async def test_a_holder_put_off_beyond_its_expiry_gives_up_its_key(
        self, store: Store, kind: OutcomeKind
    ) -> None:
        """It will expire before it is due. Until then it stays pending."""
        for delay, gives_way in ((10 - store.tick, False), (10 + store.tick, True)):
            key = str(gives_way)
            task = await store.taken(unique_key=key, expires_at=await store.later(10))
            assert await store.end(kind, task.lease, delay)
            assert (await store.add(unique_key=key) != task.id) is gives_way
            assert await store.status(task.id) is TaskStatus.PENDING
            await store.advance(10)
            await store.sweep(3)
            assert await store.status(task.id) is TaskStatus.EXPIRED
            await store.take()

    async def test_callers_at_once_take_the_place_of_a_stale_holder_once(
        self, store: Store
    ) -> None:
        """One of many callers expires it and stores a task; all get the id of that task."""
        old = await store.add(unique_key="k", expires_at=await store.later(1))
        await store.advance(1)
        ids = await at_once([partial(store.add, unique_key="k")] * 20)
        assert set(ids) == {(await store.take_one()).id}
        assert await store.status(old) is TaskStatus.EXPIRED

    async def test_a_holder_past_its_expiry_is_its_own_holder(self, store: Store) -> None:
        """It does not give way to itself if it is enqueued again after an error."""
        task = new_task(unique_key="k", expires_at=await store.later(1))
        assert await store.enqueue([task]) == [task.id]
        await store.advance(1)
        assert await store.enqueue([task]) == [task.id]
        assert await store.status(task.id) is TaskStatus.PENDING

    @pytest.mark.parametrize("kind", [None, *PUTS_BACK, OutcomeKind.SUCCESS])
    async def test_a_holder_asked_to_end_gives_up_its_key(
        self, store: Store, kind: OutcomeKind | None
    ) -> None:
        """A new task is stored while it still runs, and stays the only holder."""
        task = await store.taken(unique_key="k")
        assert await store.cancel(task.id)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert (await store.info(task.id)).cancel_requested
        assert await store.cancel(task.id)
        if kind is not None:
            assert await store.end(kind, task.lease)
        assert await store.add(unique_key="k") == new
        assert await store.take_ids() == [new]

    @pytest.mark.parametrize("until", ["end", "start"])
    async def test_keys_twice_in_a_batch_go_by_the_same_rules(
        self, store: Store, until: Literal["end", "start"]
    ) -> None:
        """A stale holder gives way once; the first of a batch then holds the key."""
        options: dict[str, Any] = {"unique_key": "k", "unique_until": until}
        old = await store.add(expires_at=await store.later(1), **options)
        await store.advance(1)
        first, second = new_task(**options), new_task(**options)
        assert await store.enqueue([first, second]) == [first.id, first.id]
        assert await store.status(old) is TaskStatus.EXPIRED
        assert await store.take_ids() == [first.id]

    async def test_a_key_until_the_start_is_free_from_the_reservation_on(
        self, store: Store
    ) -> None:
        """It is held while the task is pending; then another task can take it."""
        options: dict[str, Any] = {"unique_key": "k", "unique_until": "start"}
        first = await store.add(**options)
        assert await store.add(**options) == first
        running = await store.take_one()
        second = await store.add(**options)
        assert second != first
        assert await store.add(unique_key="k") == second
        assert await store.end(OutcomeKind.SUCCESS, running.lease)
        assert await store.add(**options) == second

    @pytest.mark.parametrize("kind", PUTS_BACK)
    @pytest.mark.parametrize("is_taken", ["before", "after"])
    async def test_a_key_until_the_start_does_not_come_back(
        self, store: Store, kind: OutcomeKind, is_taken: str
    ) -> None:
        """A task that is put back does not hold it, whether another task does or not."""
        task = await store.taken(unique_key="k", unique_until="start")
        others = [await store.add(unique_key="k")] if is_taken == "before" else []
        assert await store.end(kind, task.lease)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert others in ([], [new])
        assert {task.id for task in await store.take()} == {task.id, new}

    async def test_a_key_until_the_start_does_not_come_back_with_a_reclaim(
        self, store: Store
    ) -> None:
        """Nor after a reclaim."""
        task = await store.taken(unique_key="k", unique_until="start")
        other = await store.add(unique_key="k")
        await store.advance(LEASE)
        assert await store.reclaim() == 1
        assert await store.add(unique_key="k") == other
        assert {each.id for each in await store.take()} == {task.id, other}
