"""Checks of pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.models import ALL_QUEUES, OutcomeKind
from sitq.states import TaskStatus
from sitq.testing._conformance._admin_store import AdminSuite

if TYPE_CHECKING:
    from sitq.testing._conformance._admin_store import AdminStore

__all__ = ["PauseChecks"]


class PauseChecks(AdminSuite):
    """`AdminBackend.pause_queue`, `AdminBackend.resume_queue`, and reservations meanwhile."""

    async def test_no_task_of_a_paused_queue_is_reserved(self, store: AdminStore) -> None:
        """Tasks of other queues are, and those of the queue once it is resumed."""
        task_id = await store.add()
        other = await store.add(queue="other")
        await store.pause("default")
        both = ("default", "other")
        assert await store.take_ids(queues=both) == [other]
        assert await store.wait(both) is None
        assert await store.admin.resume_queue("default") is True
        assert await store.wait(both) == 0.0
        assert await store.take_ids(queues=both) == [task_id]

    async def test_a_worker_of_all_queues_obeys_a_pause(self, store: AdminStore) -> None:
        """A reservation from all queues leaves out the paused one."""
        await store.add()
        await store.pause("default")
        assert await store.take(queues=ALL_QUEUES) == []
        assert await store.wait(ALL_QUEUES) is None

    async def test_a_queue_is_paused_before_it_has_a_task(self, store: AdminStore) -> None:
        """A pause needs no queue that exists."""
        await store.pause("new")
        await store.add(queue="new")
        assert await store.take(queues=("new",)) == []

    async def test_a_pause_ends_by_itself(self, store: AdminStore) -> None:
        """It ends at its moment, and the wait of a reservation is the time until then."""
        task_id = await store.add()
        await store.pause("default", until=await store.later(10))
        wait = await store.wait()
        assert wait is not None
        assert 10 - store.tick <= wait <= 10
        await store.advance(10 - store.tick)
        if store.tick < 1:
            assert await store.take() == []
        await store.advance(store.tick)
        assert await store.take_ids() == [task_id]
        assert await store.admin.list_pauses() == []

    async def test_a_task_that_is_due_after_the_pause_waits_for_its_eta(
        self, store: AdminStore
    ) -> None:
        """The later of the two moments counts."""
        await store.add(eta=await store.later(20))
        await store.pause("default", until=await store.later(10))
        wait = await store.wait()
        assert wait is not None
        assert 20 - store.tick <= wait <= 20

    async def test_running_tasks_go_on_in_a_paused_queue(self, store: AdminStore) -> None:
        """A task that is put back waits for the end of the pause."""
        done, again = [await store.taken() for _ in range(2)]
        await store.pause("default")
        assert await store.end(OutcomeKind.SUCCESS, done.lease)
        assert await store.end(OutcomeKind.RELEASE, again.lease)
        assert await store.take() == []
        await store.admin.resume_queue("default")
        assert await store.take_ids() == [again.id]

    async def test_tasks_of_a_paused_queue_expire(self, store: AdminStore) -> None:
        """A pause does not change when a task expires."""
        task_id = await store.add(expires_at=await store.later(5))
        await store.pause("default")
        await store.advance(5)
        await store.sweep(3)
        assert await store.status(task_id) is TaskStatus.EXPIRED

    async def test_a_pause_says_who_and_why(self, store: AdminStore) -> None:
        """A second pause replaces the first. Its moment is the store's."""
        now = await store.now()
        await store.pause("b", reason="SMTP is down", by="ann")
        await store.pause("a")
        until = await store.later(50)
        await store.pause("b", reason="moving", by="bob", until=until)
        first, second = await store.admin.list_pauses()
        assert (first.queue, first.reason, first.by, first.until) == ("a", "", "", None)
        assert (second.queue, second.reason, second.by) == ("b", "moving", "bob")
        assert second.until == until
        assert store.same(second.at, now)

    async def test_what_is_not_paused_is_not_resumed(self, store: AdminStore) -> None:
        """`resume_queue` is False for an unknown or resumed queue, and after the end of a pause."""
        assert await store.admin.resume_queue("default") is False
        await store.pause("default", until=await store.later(1))
        await store.advance(1)
        assert await store.admin.resume_queue("default") is False

    async def test_a_pause_and_its_end_wake_the_workers(self, store: AdminStore) -> None:
        """A pause changes ``"cancels"``, its end ``"tasks"``."""
        async with store.changes("cancels"):
            await store.pause("default")
        async with store.changes("tasks"):
            await store.admin.resume_queue("default")
