"""Checks of workers that report themselves, and of the failed attempts that a store keeps."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from sitq.administration import KEPT_FAILURES, WorkerOrders, WorkerReport, WorkerState
from sitq.errors import TaskNotFoundError
from sitq.ids import new_task_id
from sitq.models import Outcome, OutcomeKind
from sitq.testing._conformance._admin_store import AdminSuite, make_report
from sitq.testing._conformance._suite import LEASE, PATIENCE

if TYPE_CHECKING:
    from sitq.testing._conformance._admin_store import AdminStore

__all__ = ["AttemptChecks", "WorkerChecks"]


class WorkerChecks(AdminSuite):
    """`WorkerKeeper.report`, and what the store knows of workers."""

    async def test_a_worker_is_what_it_reported_last(self, store: AdminStore) -> None:
        """`list_workers` has its last report, and the moment of it."""
        first = make_report(await store.now())
        await store.report(first)
        await store.advance(5)
        changes = {"running": 3, "functions": ("jobs:a", "jobs:b"), "state": WorkerState.QUIET}
        second = first.model_copy(update=changes)
        now = await store.now()
        await store.report(second)
        (worker,) = await store.admin.list_workers()
        fields = {name: getattr(worker, name) for name in WorkerReport.model_fields}
        assert WorkerReport(**fields) == second
        assert store.same(worker.seen_at, now)
        assert worker.tasks == ()

    async def test_workers_come_by_host_and_process(self, store: AdminStore) -> None:
        """The order of their reports does not matter."""
        now = await store.now()
        for worker_id, host, pid in (("1", "b", 1), ("2", "a", 20), ("3", "a", 3), ("4", "a", 3)):
            one = make_report(now, id=worker_id, host=host, pid=pid)
            await store.report(one)
        assert [worker.id for worker in await store.admin.list_workers()] == ["3", "4", "2", "1"]

    async def test_a_worker_is_shown_with_the_tasks_that_it_runs(self, store: AdminStore) -> None:
        """`get_tasks` has the worker of a running task."""
        mine = make_report(await store.now())
        await store.report(mine)
        task = await store.taken()
        (worker,) = await store.admin.list_workers()
        assert worker.tasks == (task.id,)
        assert (await store.info(task.id)).worker == "worker"
        await store.end(OutcomeKind.SUCCESS, task.lease)
        (worker,) = await store.admin.list_workers()
        assert worker.tasks == ()
        assert (await store.info(task.id)).worker is None

    async def test_a_worker_that_is_silent_is_lost(self, store: AdminStore) -> None:
        """It is lost after one and a half of its leases, and active again with its next report."""
        mine = make_report(await store.now(), lease=10.0)
        await store.report(mine)
        await store.advance(15 - store.tick)
        (worker,) = await store.admin.list_workers()
        assert worker.state is WorkerState.ACTIVE
        await store.advance(2 * store.tick)
        (worker,) = await store.admin.list_workers()
        assert worker.state is WorkerState.LOST
        await store.report(mine)
        (worker,) = await store.admin.list_workers()
        assert worker.state is WorkerState.ACTIVE

    async def test_a_worker_that_is_lost_for_an_hour_is_removed(self, store: AdminStore) -> None:
        """A sweep removes it."""
        mine = make_report(await store.now())
        await store.report(mine)
        await store.advance(3600 - store.tick)
        await store.sweep(3)
        assert len(await store.admin.list_workers()) == 1
        await store.advance(2 * store.tick)
        await store.sweep(3)
        assert await store.admin.list_workers() == []

    async def test_a_worker_signs_off(self, store: AdminStore) -> None:
        """A worker may sign off twice, and without a report."""
        mine = make_report(await store.now())
        await store.report(mine)
        for worker_id in ("worker", "worker", "unknown"):
            await store.deregister(worker_id)
        assert await store.admin.list_workers() == []

    async def test_an_order_stays_until_the_worker_has_ended(self, store: AdminStore) -> None:
        """Each report is answered with it. An unknown worker gets no order."""
        mine = make_report(await store.now())
        none = WorkerOrders(WorkerState.ACTIVE, frozenset())
        assert await store.admin.order_worker("worker", WorkerState.QUIET) is False
        assert await store.report(mine) == none
        for state in (WorkerState.QUIET, WorkerState.ACTIVE, WorkerState.STOPPING):
            assert await store.admin.order_worker("worker", state) is True
            for _ in range(2):
                orders = await store.report(mine)
                assert orders == WorkerOrders(state, frozenset())
        await store.deregister("worker")
        assert await store.admin.order_worker("worker", WorkerState.QUIET) is False
        assert await store.report(mine) == none

    async def test_an_order_wakes_the_worker(self, store: AdminStore) -> None:
        """An order changes ``"cancels"``."""
        mine = make_report(await store.now())
        await store.report(mine)
        async with store.changes("cancels"):
            await store.admin.order_worker("worker", WorkerState.STOPPING)

    async def test_a_report_is_answered_with_the_paused_queues(self, store: AdminStore) -> None:
        """The answer has all queues whose pause has not ended."""
        mine = make_report(await store.now())
        await store.pause("default")
        await store.pause("other", until=await store.later(10))
        orders = await store.report(mine)
        assert orders.paused == {"default", "other"}
        await store.advance(10)
        orders = await store.report(mine)
        assert orders.paused == {"default"}

    async def test_the_overview_names_what_is_not_served(self, store: AdminStore) -> None:
        """It has queues without an active worker, and functions that none of the queue knows."""
        now = await store.now()
        for worker_id, queues, functions in (
            ("lost", ("a", "b"), ("jobs:a", "jobs:b")),
            ("1", ("a",), ("jobs:a",)),
            ("2", ("*",), ("jobs:c",)),
        ):
            lease = 1.0 if worker_id == "lost" else 1000.0
            one = make_report(now, id=worker_id, queues=queues, functions=functions, lease=lease)
            await store.report(one)
        for queue, function in (("a", "jobs:a"), ("a", "jobs:b"), ("b", "jobs:c")):
            await store.add(queue=queue, function=function)
        await store.advance(2)
        view = await store.admin.overview()
        assert view.unserved == ()
        assert view.unknown_functions == (("a", "jobs:b"),)
        assert [(each.name, each.workers) for each in view.queues] == [("a", 2), ("b", 1)]
        await store.deregister("2")
        view = await store.admin.overview()
        assert view.unserved == ("b",)
        assert view.unknown_functions == (("a", "jobs:b"),)
        assert [worker.id for worker in view.workers] == ["1", "lost"]
        for state in (WorkerState.QUIET, WorkerState.STOPPING):
            one = make_report(now, id="1", queues=("a",), state=state, lease=1000.0)
            await store.report(one)
            view = await store.admin.overview()
            assert view.unserved == ("a", "b")
            assert [each.workers for each in view.queues] == [0, 0]

    async def test_the_overview_names_functions_that_workers_have_put_back(
        self, store: AdminStore
    ) -> None:
        """Such a task is not due. Other scheduled tasks may have a function that is to come."""
        mine = make_report(await store.now(), queues=("default",), lease=1000.0)
        await store.report(mine)
        await store.add(function="jobs:later", eta=await store.later(60))
        task = await store.taken(function="jobs:new")
        await store.end(OutcomeKind.UNKNOWN_FUNCTION, task.lease, 60.0)
        view = await store.admin.overview()
        assert view.unknown_functions == (("default", "jobs:new"),)

    async def test_the_overview_counts_by_queue(self, store: AdminStore) -> None:
        """It has queues with open tasks, with a pause, or that a worker serves by name."""
        await store.taken(queue="default")
        await store.add(queue="x", eta=await store.later(-60))
        await store.add(queue="x", eta=await store.later(-20))
        await store.add(queue="x", eta=await store.later(60))
        await store.pause("paused", reason="no disk")
        mine = make_report(await store.now(), queues=("idle",))
        await store.report(mine)
        view = await store.admin.overview()
        found = {
            each.name: (each.due.value, each.scheduled.value, each.in_progress.value)
            for each in view.queues
        }
        assert found == {
            "default": (0, 0, 1), "idle": (0, 0, 0), "paused": (0, 0, 0), "x": (2, 1, 0),
        }  # fmt: skip
        default, idle, paused, x = view.queues
        assert x.oldest_due_age is not None
        assert 60 <= x.oldest_due_age < 60 + PATIENCE
        assert default.oldest_due_age is None
        assert idle.workers == 1
        assert paused.pause is not None
        assert paused.pause.reason == "no disk"
        totals = {name: count.value for name, count in view.totals.items()}
        assert totals == {"scheduled": 1, "due": 2, "retrying": 0, "in_progress": 1, "failed": 0}
        assert all(count.exact for count in view.totals.values())


class AttemptChecks(AdminSuite):
    """`AdminBackend.get_attempts`."""

    async def test_each_attempt_that_failed_is_kept(self, store: AdminStore) -> None:
        """It is kept with its times, its worker and its error. A success adds nothing."""
        task_id = await store.add()
        starts, ends = [], []
        for kind in (
            OutcomeKind.RETRY,
            OutcomeKind.RELEASE,
            OutcomeKind.RETRY,
            OutcomeKind.SUCCESS,
        ):
            task = await store.take_one()
            if kind is OutcomeKind.RETRY:
                starts.append(await store.now())
            await store.advance(1)
            if kind is OutcomeKind.RETRY:
                ends.append(await store.now())
            await store.end(kind, task.lease)
        attempts = await store.admin.get_attempts(task_id)
        assert [attempt.number for attempt in attempts] == [1, 2]
        for attempt, start, end in zip(attempts, starts, ends, strict=True):
            assert (attempt.worker, attempt.error) == ("worker", "ValueError: again")
            assert attempt.traceback == "the frames"
            assert store.same(attempt.started_at, start)
            assert store.same(attempt.ended_at, end)

    async def test_the_last_failure_is_kept_too(self, store: AdminStore) -> None:
        """A final failure is an attempt as well."""
        task = await store.taken()
        await store.end(OutcomeKind.FAILURE, task.lease)
        (attempt,) = await store.admin.get_attempts(task.id)
        assert (attempt.number, attempt.error) == (1, "ValueError: no")

    async def test_a_lost_worker_is_kept_as_an_attempt(self, store: AdminStore) -> None:
        """Each lost worker is; it spends no attempt, so the next one has the same number."""
        task_id = await store.add()
        for _ in range(2):
            await store.crash(2)
        attempts = await store.admin.get_attempts(task_id)
        assert [(each.number, each.worker) for each in attempts] == [(1, "worker"), (1, "worker")]
        assert {each.error.partition(":")[0] for each in attempts} == {"LeaseLostError"}
        assert attempts[1].started_at - attempts[0].started_at >= timedelta(seconds=LEASE)

    async def test_the_last_ten_are_kept(self, store: AdminStore) -> None:
        """The oldest attempts are removed."""
        task_id = await store.add()
        for number in range(1, KEPT_FAILURES + 4):
            task = await store.take_one()
            await store.finish([Outcome.retry(task.lease, 0, f"ValueError: {number}")])
        attempts = await store.admin.get_attempts(task_id)
        assert [each.number for each in attempts] == list(range(4, KEPT_FAILURES + 4))
        assert attempts[0].error == "ValueError: 4"

    async def test_attempts_go_with_their_task(self, store: AdminStore) -> None:
        """A sweep that removes a task removes its attempts."""
        task = await store.taken(result_ttl=10.0)
        await store.end(OutcomeKind.FAILURE, task.lease)
        await store.advance(10)
        assert (await store.sweep(3)).pruned == 1
        with pytest.raises(TaskNotFoundError):
            await store.admin.get_attempts(task.id)

    async def test_unknown_ids_are_refused(self, store: AdminStore) -> None:
        """A known task that never failed has no attempts."""
        assert await store.admin.get_attempts(await store.add()) == []
        with pytest.raises(TaskNotFoundError):
            await store.admin.get_attempts(new_task_id())
