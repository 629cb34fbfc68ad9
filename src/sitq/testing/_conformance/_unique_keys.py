"""Checks of unique keys: who holds one, and until when."""

# Checks are made of assertions, on small numbers.
# ruff: noqa: S101, PLR2004

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest

from sitq.models import OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._store import LEASE, PATIENCE, StoreUnderTest, new_task
from sitq.testing._conformance._suite import Suite

if TYPE_CHECKING:
    from sitq.ids import TaskId

__all__ = ["UniqueKeyChecks"]

_RETURNS = (OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION)


async def _add_at_once(store: StoreUnderTest, callers: int) -> list[TaskId[Any]]:
    """Have callers enqueue under one key at the same time; return the ids that they get."""
    ids: list[TaskId[Any]] = []

    async def add() -> None:
        ids.append(await store.add(unique_key="k"))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(add)
    return ids


class UniqueKeyChecks(Suite):
    """`Backend.enqueue` of tasks with a ``unique_key``."""

    async def test_a_key_that_is_held_gives_the_holder(self, store: StoreUnderTest) -> None:
        """While its holder is pending or in progress, a key lets no other task in."""
        holder = await store.add(unique_key="k")
        second, other = new_task(unique_key="k"), new_task(unique_key="K")
        assert await store.backend.enqueue([second, other]) == [holder, other.id]
        await store.take()
        third = new_task(unique_key="k")
        assert await store.backend.enqueue([third]) == [holder]
        assert await store.backend.get_tasks([second.id, third.id]) == [None, None]

    async def test_a_key_twice_in_a_batch_stores_the_first(self, store: StoreUnderTest) -> None:
        """An earlier task of the same batch holds the key too."""
        first, plain = new_task(unique_key="k"), new_task()
        batch = [first, plain, new_task(unique_key="k"), new_task(unique_key="k")]
        assert await store.backend.enqueue(batch) == [first.id, plain.id, first.id, first.id]
        assert [task.id for task in await store.take()] == [first.id, plain.id]

    async def test_keys_do_not_change_the_order_of_a_batch(self, store: StoreUnderTest) -> None:
        """Tasks with keys are answered, and run, in the order in which they were given."""
        tasks = [new_task(unique_key=key) for key in ("c", "a", None, "B", "b", "aa")]
        ids = [task.id for task in tasks]
        assert await store.backend.enqueue(tasks) == ids
        assert [task.id for task in await store.take()] == ids

    async def test_a_holder_that_is_enqueued_again_is_its_own_holder(
        self, store: StoreUnderTest
    ) -> None:
        """A task with a key may be sent again after an error that left its fate unknown."""
        task = new_task(unique_key="k")
        assert await store.backend.enqueue([task]) == [task.id]
        assert await store.backend.enqueue([task]) == [task.id]
        assert len(await store.take()) == 1

    @pytest.mark.parametrize("kind", _RETURNS)
    async def test_a_task_put_back_still_holds_its_key(
        self, store: StoreUnderTest, kind: OutcomeKind
    ) -> None:
        """A key is held through all attempts."""
        task = await store.taken(unique_key="k")
        assert await store.end(kind, task.lease, 5.0)
        assert await store.add(unique_key="k") == task.id

    @pytest.mark.parametrize(
        "kind", [OutcomeKind.SUCCESS, OutcomeKind.FAILURE, OutcomeKind.CANCELLED]
    )
    async def test_an_end_frees_the_key(self, store: StoreUnderTest, kind: OutcomeKind) -> None:
        """Once its holder is final, a key is free for one other task."""
        task = await store.taken(unique_key="k")
        assert await store.end(kind, task.lease)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert await store.add(unique_key="k") == new

    async def test_cancelling_and_expiring_free_the_key(self, store: StoreUnderTest) -> None:
        """A key is free also after an end without an attempt."""
        first = await store.add(unique_key="k")
        await store.backend.cancel(first)
        second = await store.add(unique_key="k", expires_at=await store.later(10))
        assert second != first
        await store.advance(10)
        await store.backend.sweep(3)
        assert await store.add(unique_key="k") not in {first, second}

    async def test_callers_at_once_get_one_holder(self, store: StoreUnderTest) -> None:
        """Of many callers with one key, one stores, and all get its id."""
        ids = await _add_at_once(store, 20)
        assert len(ids) == 20
        assert len(set(ids)) == 1
        assert len(await store.take()) == 1

    async def test_a_holder_past_its_expiry_gives_way(self, store: StoreUnderTest) -> None:
        """One that waits can never start: it expires as the new task is stored, and not before."""
        old = await store.add(unique_key="k", expires_at=await store.later(10))
        await store.advance(10 - store.tick)
        assert await store.add(unique_key="k") == old
        await store.advance(store.tick)
        now = await store.now()
        new = await store.add(unique_key="k")
        assert new != old
        result = await store.result(old)
        assert (result.status, result.attempts) == (TaskStatus.EXPIRED, 0)
        assert store.same(result.finished_at, now)
        assert [task.id for task in await store.take()] == [new]
        assert await store.add(unique_key="k") == new

    async def test_a_holder_that_expired_is_final_at_once(self, store: StoreUnderTest) -> None:
        """Its error of an earlier attempt goes, and its retention begins, as in a sweep."""
        expires_at = await store.later(10)
        task = await store.taken(unique_key="k", expires_at=expires_at, result_ttl=5.0)
        assert await store.end(OutcomeKind.RETRY, task.lease)
        await store.advance(10)
        await store.add(unique_key="k")
        result = await store.result(task.id)
        assert (result.status, result.error) == (TaskStatus.EXPIRED, None)
        assert (await store.backend.sweep(3)).expired == 0
        await store.advance(5)
        assert (await store.backend.sweep(3)).pruned == 1

    async def test_a_running_holder_past_its_expiry_keeps_its_key(
        self, store: StoreUnderTest
    ) -> None:
        """It has started in time, and may end well while its lease lasts."""
        task = await store.taken(unique_key="k", expires_at=await store.later(10))
        await store.advance(LEASE - store.tick)
        assert await store.add(unique_key="k") == task.id

    async def test_a_lost_holder_past_its_expiry_gives_up_its_key(
        self, store: StoreUnderTest
    ) -> None:
        """Nobody will start it again; if its worker reports all the same, that counts."""
        task = await store.taken(unique_key="k", expires_at=await store.later(10))
        await store.advance(LEASE)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert await store.status(task.id) is TaskStatus.IN_PROGRESS
        assert await store.end(OutcomeKind.SUCCESS, task.lease)
        assert await store.add(unique_key="k") == new

    async def test_a_lost_holder_that_may_start_again_keeps_its_key(
        self, store: StoreUnderTest
    ) -> None:
        """Before its expiry, the end of a lease frees no key."""
        task = await store.taken(unique_key="k", expires_at=await store.later(2 * LEASE))
        await store.advance(LEASE)
        assert await store.add(unique_key="k") == task.id

    @pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.UNKNOWN_FUNCTION])
    async def test_a_holder_put_off_beyond_its_expiry_gives_up_its_key(
        self, store: StoreUnderTest, kind: OutcomeKind
    ) -> None:
        """It will expire before it is due; up to that moment it stays as it is."""
        for delay, gives_way in ((10 - store.tick, False), (10 + store.tick, True)):
            key = str(gives_way)
            task = await store.taken(unique_key=key, expires_at=await store.later(10))
            assert await store.end(kind, task.lease, delay)
            assert (await store.add(unique_key=key) != task.id) is gives_way
            assert await store.status(task.id) is TaskStatus.PENDING
            await store.advance(10)
            await store.backend.sweep(3)
            assert await store.status(task.id) is TaskStatus.EXPIRED
            await store.take()

    async def test_callers_at_once_take_the_place_of_a_stale_holder_once(
        self, store: StoreUnderTest
    ) -> None:
        """One of many callers expires it and stores; all get the new holder's id."""
        old = await store.add(unique_key="k", expires_at=await store.later(1))
        await store.advance(1)
        ids = set(await _add_at_once(store, 20))
        assert len(ids) == 1
        assert [task.id for task in await store.take()] == list(ids)
        assert await store.status(old) is TaskStatus.EXPIRED

    async def test_a_holder_past_its_expiry_is_its_own_holder(self, store: StoreUnderTest) -> None:
        """It does not give way to itself, when it is sent again after an error."""
        task = new_task(unique_key="k", expires_at=await store.later(1))
        assert await store.backend.enqueue([task]) == [task.id]
        await store.advance(1)
        assert await store.backend.enqueue([task]) == [task.id]
        assert await store.status(task.id) is TaskStatus.PENDING

    @pytest.mark.parametrize("kind", [None, *_RETURNS, OutcomeKind.SUCCESS])
    async def test_a_holder_asked_to_end_gives_up_its_key(
        self, store: StoreUnderTest, kind: OutcomeKind | None
    ) -> None:
        """Fresh work is stored while it still runs, and is the only holder whatever comes."""
        task = await store.taken(unique_key="k")
        assert await store.backend.cancel(task.id)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert (await store.info(task.id)).cancel_requested
        assert await store.backend.cancel(task.id)
        if kind is not None:
            assert await store.end(kind, task.lease)
        assert await store.add(unique_key="k") == new
        assert [task.id for task in await store.take()] == [new]

    @pytest.mark.parametrize("until", ["end", "start"])
    async def test_keys_twice_in_a_batch_go_by_the_same_rules(
        self, store: StoreUnderTest, until: Literal["end", "start"]
    ) -> None:
        """A stale holder gives way once; the first of a batch then holds the key."""
        options: dict[str, Any] = {"unique_key": "k", "unique_until": until}
        old = await store.add(expires_at=await store.later(1), **options)
        await store.advance(1)
        first, second = new_task(**options), new_task(**options)
        assert await store.backend.enqueue([first, second]) == [first.id, first.id]
        assert await store.status(old) is TaskStatus.EXPIRED
        assert [task.id for task in await store.take()] == [first.id]

    async def test_a_key_until_the_start_is_free_from_the_reservation_on(
        self, store: StoreUnderTest
    ) -> None:
        """It is held while the task waits; then another may take it, however the first ends."""
        options: dict[str, Any] = {"unique_key": "k", "unique_until": "start"}
        first = await store.add(**options)
        assert await store.add(**options) == first
        (running,) = await store.take()
        second = await store.add(**options)
        assert second != first
        assert await store.add(unique_key="k") == second
        assert await store.end(OutcomeKind.SUCCESS, running.lease)
        assert await store.add(**options) == second

    @pytest.mark.parametrize("kind", _RETURNS)
    @pytest.mark.parametrize("is_taken", ["before", "after"])
    async def test_a_key_until_the_start_does_not_come_back(
        self, store: StoreUnderTest, kind: OutcomeKind, is_taken: str
    ) -> None:
        """A task that is put back after a start stays without its key, taken by another or not."""
        task = await store.taken(unique_key="k", unique_until="start")
        others = [await store.add(unique_key="k")] if is_taken == "before" else []
        assert await store.end(kind, task.lease)
        new = await store.add(unique_key="k")
        assert new != task.id
        assert others in ([], [new])
        assert {task.id for task in await store.take()} == {task.id, new}

    async def test_a_key_until_the_start_does_not_come_back_with_a_reclaim(
        self, store: StoreUnderTest
    ) -> None:
        """Nor does it when the worker was lost."""
        task = await store.taken(unique_key="k", unique_until="start")
        other = await store.add(unique_key="k")
        await store.advance(LEASE)
        assert (await store.backend.sweep(3)).reclaimed == 1
        assert await store.add(unique_key="k") == other
        assert {each.id for each in await store.take()} == {task.id, other}
