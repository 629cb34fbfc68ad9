"""Checks of bulk changes, retries and replacements of tasks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sitq.administration import BulkChange, TaskChange, TaskFilter
from sitq.ids import new_task_id
from sitq.models import LeaseState, OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._admin_store import AdminSuite
from sitq.testing._conformance._suite import at_once, new_task

if TYPE_CHECKING:
    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.testing._conformance._admin_store import AdminStore

__all__ = ["BulkChecks", "RetryChecks"]

_FINAL = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)


async def three(store: AdminStore) -> dict[TaskStatus, TaskId[Any]]:
    """Store a failed, a running and a pending task, in this order."""
    failed = await store.taken()
    await store.end(OutcomeKind.FAILURE, failed.lease)
    running = await store.taken()
    pending = await store.add(eta=await store.later(5))
    return {
        TaskStatus.FAILED: failed.id,
        TaskStatus.IN_PROGRESS: running.id,
        TaskStatus.PENDING: pending,
    }


class BulkChecks(AdminSuite):
    """`AdminBackend.change_tasks` and `AdminBackend.replace_task`."""

    async def test_cancel_ends_what_is_open(self, store: AdminStore) -> None:
        """A final task is skipped, with the reason."""
        ids = await three(store)
        result = await store.change(BulkChange.CANCEL)
        assert (result.matched, result.done, result.cursor) == (3, 2, None)
        ((skipped, reason),) = result.skipped
        assert skipped == ids[TaskStatus.FAILED]
        assert "failed" in reason
        assert await store.status(ids[TaskStatus.PENDING]) is TaskStatus.CANCELLED
        assert (await store.info(ids[TaskStatus.IN_PROGRESS])).cancel_requested

    async def test_a_running_task_hears_of_a_bulk_cancel(self, store: AdminStore) -> None:
        """Its lease keeper reports it, as after `cancel`."""
        task = await store.taken(unique_key="key")
        async with store.changes("cancels"):
            await store.change(BulkChange.CANCEL)
        assert await store.renew([task.lease]) == [LeaseState.CANCEL_REQUESTED]
        assert await store.add(unique_key="key") != task.id

    async def test_delete_leaves_what_runs(self, store: AdminStore) -> None:
        """All other tasks are removed, with their results and attempts."""
        ids = await three(store)
        result = await store.change(BulkChange.DELETE)
        assert (result.matched, result.done) == (3, 2)
        ((skipped, reason),) = result.skipped
        assert skipped == ids[TaskStatus.IN_PROGRESS]
        assert "in progress" in reason
        assert await store.listed() == [skipped]
        assert await store.get_results(list(ids.values())) == {skipped: None}

    async def test_postpone_moves_only_later(self, store: AdminStore) -> None:
        """No task starts before its eta, which may be signed."""
        ids = await three(store)
        later = await store.add(eta=await store.later(100))
        eta = await store.later(50)
        result = await store.change(BulkChange.POSTPONE, eta=eta)
        assert (result.matched, result.done) == (4, 1)
        assert (await store.info(ids[TaskStatus.PENDING])).eta == eta
        assert {task_id for task_id, _ in result.skipped} == {
            ids[TaskStatus.FAILED], ids[TaskStatus.IN_PROGRESS], later,
        }  # fmt: skip
        await store.advance(49)
        assert await store.take() == []
        await store.advance(1 + store.tick)
        assert await store.take_ids() == [ids[TaskStatus.PENDING]]

    async def test_a_priority_is_set_of_what_waits(self, store: AdminStore) -> None:
        """The next reservation goes by it."""
        first, second = [await store.add() for _ in range(2)]
        result = await store.change(
            BulkChange.SET_PRIORITY, where=TaskFilter(ids=(second,)), priority=7
        )
        assert (result.matched, result.done) == (1, 1)
        assert (await store.info(second)).priority == 7
        taken = await store.take()
        assert [task.id for task in taken] == [second, first]
        result = await store.change(BulkChange.SET_PRIORITY, priority=0)
        assert (result.matched, result.done) == (2, 0)

    @pytest.mark.parametrize("kind", list(BulkChange))
    async def test_a_dry_run_changes_nothing(self, store: AdminStore, kind: BulkChange) -> None:
        """It returns what the call would do."""
        ids = (await three(store)).values()
        before = [await store.picture(task_id) for task_id in ids]
        to: dict[str, Any] = {"eta": await store.later(50), "priority": 3}
        dry = await store.change(kind, dry_run=True, **to)
        assert [await store.picture(task_id) for task_id in ids] == before
        assert await store.change(kind, **to) == dry

    async def test_a_bulk_change_goes_on_at_its_cursor(self, store: AdminStore) -> None:
        """A changed task no longer matches the filter. No task is left out."""
        await store.add_many(10)
        where = TaskFilter(status="pending")
        cursor, done = None, 0
        for _ in range(4):
            change = TaskChange(BulkChange.CANCEL)
            result = await store.admin.change_tasks(change, where, 3, cursor, dry_run=False)
            done += result.done
            cursor = result.cursor
            if cursor is None:
                break
        assert cursor is None
        assert done == 10
        assert await store.listed(status="pending") == []

    async def test_a_pending_task_is_replaced(self, store: AdminStore) -> None:
        """It is due at once, with the new payload. Listeners for tasks are woken."""
        task_id = await store.add(eta=await store.later(60))
        task = await store.load_task(task_id)
        async with store.changes("tasks"):
            new = task.model_copy(update={"eta": None, "payload": b"new"})
            assert await store.admin.replace_task(new) is True
        (reserved,) = await store.take()
        assert (reserved.id, reserved.payload) == (task_id, b"new")
        assert await store.admin.replace_task(new) is False
        assert await store.admin.replace_task(new_task()) is False


def repeat_of(old: TaskId[Any], **changes: Any) -> Task:
    """Make a task that repeats another."""
    return new_task(retry_of=old, **changes)


class RetryChecks(AdminSuite):
    """`AdminBackend.retry_tasks` and `AdminBackend.load_tasks`."""

    async def test_a_final_task_is_repeated_once(self, store: AdminStore) -> None:
        """The old task names the new one. A second one needs ``again=True``."""
        for kind in (OutcomeKind.SUCCESS, OutcomeKind.FAILURE, OutcomeKind.CANCELLED):
            task = await store.taken()
            await store.end(kind, task.lease)
            first, second, third = [repeat_of(task.id) for _ in range(3)]
            assert await store.admin.retry_tasks([first], again=False) == [first.id]
            assert (await store.info(task.id)).retried_as == first.id
            assert await store.admin.retry_tasks([second], again=False) == [None]
            assert await store.get_tasks([second.id]) == [None]
            assert await store.admin.retry_tasks([third], again=True) == [third.id]
            assert (await store.info(task.id)).retried_as == third.id
            assert {each.id for each in await store.take()} == {first.id, third.id}

    async def test_one_call_repeats_a_task_once(self, store: AdminStore) -> None:
        """A task that is given twice is repeated once."""
        task = await store.taken()
        await store.end(OutcomeKind.FAILURE, task.lease)
        both = [repeat_of(task.id), repeat_of(task.id)]
        assert await store.admin.retry_tasks(both, again=False) == [both[0].id, None]

    async def test_two_admins_at_once_repeat_a_task_once(
        self, store: AdminStore, peer: AdminStore
    ) -> None:
        """Each task is repeated by one of them."""
        tasks = [await store.taken() for _ in range(5)]
        for task in tasks:
            await store.end(OutcomeKind.FAILURE, task.lease)

        async def retry(user: AdminStore) -> list[TaskId[Any] | None]:
            repeats = [repeat_of(task.id) for task in tasks]
            return await user.admin.retry_tasks(repeats, again=False)

        answers = await at_once([partial(retry, store), partial(retry, peer)])
        for task, *stored in zip(tasks, *answers, strict=True):
            (repeat,) = [each for each in stored if each is not None]
            assert (await store.info(task.id)).retried_as == repeat
        assert len(await store.listed(status="pending")) == len(tasks)

    async def test_what_is_not_final_is_not_repeated(self, store: AdminStore) -> None:
        """Neither is a task that the store does not know."""
        running = await store.taken()
        pending = await store.add()
        repeats = [repeat_of(old) for old in (running.id, pending, new_task_id())]
        assert await store.admin.retry_tasks(repeats, again=False) == [None] * 3
        assert await store.listed(status="pending") == [pending]

    async def test_a_repetition_respects_unique_keys(self, store: AdminStore) -> None:
        """If another task holds the key, nothing is stored."""
        task = await store.taken(unique_key="key")
        await store.end(OutcomeKind.FAILURE, task.lease)
        holder = await store.add(unique_key="key")
        repeat = repeat_of(task.id, unique_key="key")
        assert await store.admin.retry_tasks([repeat], again=False) == [holder]
        assert (await store.info(task.id)).retried_as == holder

    async def test_tasks_are_loaded_in_order(self, store: AdminStore) -> None:
        """Each as it was enqueued; `None` for an unknown id."""
        ids = [await store.add(headers={"n": str(number)}) for number in range(3)]
        wanted = [ids[2], new_task_id(), ids[0]]
        second, unknown, first = await store.admin.load_tasks(wanted)
        assert unknown is None
        assert first == await store.load_task(ids[0])
        assert second == await store.load_task(ids[2])

    async def test_a_retry_wakes_the_workers(self, store: AdminStore) -> None:
        """Listeners for tasks are woken."""
        task = await store.taken()
        await store.end(OutcomeKind.FAILURE, task.lease)
        async with store.changes("tasks"):
            await store.admin.retry_tasks([repeat_of(task.id)], again=False)
