"""Checks of lists and counts of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sitq.administration import TaskFilter
from sitq.errors import ValidationError
from sitq.ids import new_task_id
from sitq.models import OutcomeKind
from sitq.testing._conformance._admin_store import AdminSuite
from sitq.testing._conformance._suite import new_task

if TYPE_CHECKING:
    from sitq.administration import StatusFilter
    from sitq.ids import TaskId
    from sitq.testing._conformance._admin_store import AdminStore

__all__ = ["ListChecks"]


async def one_of_each(store: AdminStore) -> dict[str, TaskId[Any]]:
    """Store a task in each status; return the ids by status."""
    ids: dict[str, TaskId[Any]] = {}
    for kind in (OutcomeKind.SUCCESS, OutcomeKind.FAILURE, OutcomeKind.CANCELLED):
        task = await store.taken()
        await store.end(kind, task.lease)
        ids[kind.value] = task.id
    ids["expired"] = await store.add(expires_at=await store.later(1))
    await store.advance(1)
    await store.sweep(3)
    retrying = await store.taken()
    await store.end(OutcomeKind.RETRY, retrying.lease, 3600)
    ids["retrying"] = retrying.id
    ids["in_progress"] = (await store.taken()).id
    ids["scheduled"] = await store.add(eta=await store.later(3600))
    ids["due"] = await store.add()
    return ids


class ListChecks(AdminSuite):
    """`AdminBackend.list_tasks` and `AdminBackend.count_tasks`."""

    async def test_a_status_finds_its_tasks(self, store: AdminStore) -> None:
        """Pending tasks are also found as scheduled, due or retrying."""
        ids = await one_of_each(store)
        assert await store.listed(status="success") == [ids["success"]]
        assert await store.listed(status="failed") == [ids["failure"]]
        assert await store.listed(status="cancelled") == [ids["cancelled"]]
        assert await store.listed(status="expired") == [ids["expired"]]
        assert await store.listed(status="in_progress") == [ids["in_progress"]]
        assert await store.listed(status="due") == [ids["due"]]
        assert await store.listed(status="retrying") == [ids["retrying"]]
        assert set(await store.listed(status="scheduled")) == {ids["scheduled"], ids["retrying"]}
        assert await store.listed() == sorted(ids.values(), reverse=True)

    async def test_rows_are_what_is_known_of_a_task(self, store: AdminStore) -> None:
        """They equal those of `get_tasks`."""
        ids = await one_of_each(store)
        page = await store.admin.list_tasks(TaskFilter(), 100, None)
        assert {info.task_id for info in page.items} == set(ids.values())
        assert list(page.items) == await store.get_tasks([info.task_id for info in page.items])
        assert (page.cursor, page.scanned_to) == (None, None)

    async def test_each_field_of_a_filter_narrows_it(self, store: AdminStore) -> None:
        """A task has to match all fields."""
        plain = await store.add()
        moment = await store.later(1)
        await store.advance(1)
        other = await store.add(
            queue="other", function="jobs:other", priority=5, unique_key="key", retry_of=plain,
            eta=await store.later(10),
        )  # fmt: skip
        wheres: list[dict[str, Any]] = [
            {"queue": "other"},
            {"function": "jobs:other"},
            {"priority": 5},
            {"unique_key": "key"},
            {"retry_of": plain},
            {"ids": (other, new_task_id())},
            {"eta_after": await store.later(5)},
            {"enqueued_after": moment},
            {"queue": "other", "priority": 5, "status": "pending"},
        ]
        for where in wheres:
            assert await store.listed(**where) == [other], where
            assert await store.listed(**{**where, "function": "jobs:none"}) == []
        assert await store.listed(enqueued_before=moment) == [plain]
        assert await store.listed(eta_before=await store.later(5)) == [plain]
        assert await store.listed(ids=()) == []

    async def test_ends_are_found_by_error_and_by_time(self, store: AdminStore) -> None:
        """The error's type is compared as a whole."""
        first = await store.taken()
        await store.end(OutcomeKind.FAILURE, first.lease)
        await store.advance(5)
        boundary = await store.now()
        await store.advance(5)
        second = await store.taken()
        await store.end(OutcomeKind.FAILURE, second.lease)
        assert await store.listed(error="ValueError") == [second.id, first.id]
        assert await store.listed(error="Value") == []
        assert await store.listed(status="failed", error="ValueErrorX") == []
        assert await store.listed(finished_before=boundary) == [first.id]
        assert await store.listed(status="failed", finished_after=boundary) == [second.id]

    async def test_running_tasks_are_found_by_their_worker(self, store: AdminStore) -> None:
        """The filter may name a status as well."""
        task = await store.taken()
        await store.add()
        assert await store.listed(worker="worker") == [task.id]
        assert await store.listed(worker="worker", status="in_progress") == [task.id]
        assert await store.listed(worker="another") == []

    async def test_pending_tasks_come_in_the_order_of_reservation(self, store: AdminStore) -> None:
        """Queue by queue; within a queue by priority, eta and insertion."""
        late = await store.add(eta=await store.later(-1))
        early = await store.add(eta=await store.later(-5))
        urgent = await store.add(priority=1)
        future = await store.add(eta=await store.later(60))
        again = await store.add(eta=await store.later(60))
        first = await store.add(queue="a")
        expected = [first, urgent, early, late, future, again]
        for limit in (1, 2, 100):
            assert await store.listed(limit, status="pending") == expected
        assert await store.listed(2, status="scheduled") == [future, again]
        assert await store.listed(1, status="due", queue="default") == [urgent, early, late]

    @pytest.mark.parametrize("status", [None, "pending", "success"])
    async def test_pages_have_each_task_once(
        self, store: AdminStore, status: StatusFilter | None
    ) -> None:
        """This holds while other tasks are added and removed between two pages."""
        ids = await store.enqueue([new_task(result_ttl=60.0) for _ in range(25)])
        if status == "success":
            for task in await store.take():
                await store.end(OutcomeKind.SUCCESS, task.lease)
        where = TaskFilter(status=status)
        seen: list[TaskId[Any]] = []
        cursor = None
        while True:
            page = await store.admin.list_tasks(where, 4, cursor)
            seen += [info.task_id for info in page.items if info.task_id in ids]
            cursor = page.cursor
            if cursor is None:
                break
            assert len(cursor) <= 500
            assert cursor.replace("-", "").replace("_", "").isalnum()
            await store.add(priority=100)
            await store.add(queue="a")
        assert sorted(seen) == sorted(ids)

    async def test_thousands_of_queues_are_listed_and_counted(self, store: AdminStore) -> None:
        """A call looks at a bounded number of queues. The list goes on after them."""
        tasks = [new_task(queue=f"q{number:04}") for number in range(2100)]
        last = new_task(queue="z", priority=1)
        await store.enqueue([*tasks, last])
        count = await store.admin.count_tasks(TaskFilter(status="pending"), 5000, 60.0)
        assert (count.value, count.exact) == (2101, True)
        assert await store.listed(status="pending", priority=1) == [last.id]

    async def test_a_cursor_outlives_its_row(self, store: AdminStore) -> None:
        """The next page comes also after the last task of this one was removed."""
        ids = await store.enqueue([new_task(result_ttl=0.0) for _ in range(6)])
        page = await store.admin.list_tasks(TaskFilter(), 3, None)
        for task in await store.take():
            await store.end(OutcomeKind.SUCCESS, task.lease)
            if task.id not in sorted(ids)[3:]:
                break
        await store.sweep(3)
        rest = await store.admin.list_tasks(TaskFilter(), 100, page.cursor)
        left = await store.listed()
        assert [info.task_id for info in rest.items] == [
            task_id for task_id in left if task_id < page.items[-1].task_id
        ]

    @pytest.mark.parametrize("cursor", ["", "x", "a" * 600, "W10", "bnVsbA", "é", "\0"])
    async def test_what_is_no_cursor_is_refused(self, store: AdminStore, cursor: str) -> None:
        """The error names the cursor."""
        with pytest.raises(ValidationError, match="cursor"):
            await store.admin.list_tasks(TaskFilter(), 10, cursor)

    async def test_the_cursor_of_another_filter_is_refused(self, store: AdminStore) -> None:
        """A page would leave tasks out."""
        await store.add_many(3)
        page = await store.admin.list_tasks(TaskFilter(), 1, None)
        for other in (TaskFilter(queue="default"), TaskFilter(status="pending")):
            with pytest.raises(ValidationError, match="cursor"):
                await store.admin.list_tasks(other, 1, page.cursor)

    async def test_a_count_says_whether_it_is_exact(self, store: AdminStore) -> None:
        """It stops at the limit."""
        await store.add_many(5)
        await store.add(queue="other")
        for where, number in ((TaskFilter(), 6), (TaskFilter(queue="default"), 5)):
            count = await store.admin.count_tasks(where, 100, 60.0)
            assert (count.value, count.exact) == (number, True)
            assert store.same(count.as_of, await store.now())
        for most in (5, 6):
            count = await store.admin.count_tasks(TaskFilter(), most, 60.0)
            assert (count.value, count.exact) == (most, False)
        count = await store.admin.count_tasks(TaskFilter(status="failed"), 5, 60.0)
        assert (count.value, count.exact) == (0, True)
