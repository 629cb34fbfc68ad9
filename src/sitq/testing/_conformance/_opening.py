"""Checks of opening and closing, of the moment of a batch, and of cancelled callers."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sitq.backends._operations import VERBS
from sitq.errors import UsageError
from sitq.ids import new_task_id
from sitq.models import Lease, Outcome, Progress
from sitq.states import TaskStatus
from sitq.testing._clock import FakeClock
from sitq.testing._conformance._suite import LEASE, PATIENCE, Store, Suite, at_once, new_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.protocols import Backend

__all__ = ["CALLS", "OpenChecks", "check_cancelled"]

_ROUNDS: Final = 24


class _RestlessClock(FakeClock):
    """A clock that moves on at every reading."""

    def now(self) -> datetime:
        self.jump(0.001)
        return super().now()


class OpenChecks(Suite):
    """`Backend.open`, `Backend.close`, and what holds for every operation."""

    async def test_opening_and_closing_nest(self, closed: Store) -> None:
        """The store works from the first ``open`` until the last ``close``."""
        backend = closed.backend
        await backend.open()
        task_id = await closed.add()
        await backend.open()
        await backend.open()
        await backend.close()
        await backend.close()
        assert await closed.status(task_id) is TaskStatus.PENDING
        await backend.close()
        with pytest.raises(UsageError):
            await closed.add()

    async def test_a_backend_that_is_not_open_says_so(self, closed: Store) -> None:
        """Every operation before the first ``open`` and after the last ``close`` raises."""
        await _check_not_open(closed.backend)
        await closed.backend.open()
        await closed.backend.close()
        await _check_not_open(closed.backend)

    async def test_a_backend_is_opened_again(self, closed: Store) -> None:
        """After the last ``close`` it may be opened again; what it kept is there."""
        await closed.backend.open()
        task_id = await closed.add()
        await closed.backend.close()
        await closed.backend.open()
        found = await closed.get_tasks([task_id])
        assert (found != [None]) is self.keeps_tasks
        await closed.add()
        await closed.backend.close()

    async def test_users_at_once_are_all_counted(self, closed: Store) -> None:
        """Users that open at the same time share one store."""

        async def use() -> None:
            await closed.backend.open()
            await closed.add()
            await anyio.lowlevel.checkpoint()
            await closed.add()
            await closed.backend.close()

        await closed.backend.open()
        await at_once([use] * 10)
        assert len(await closed.take()) == 20
        await closed.backend.close()

    async def test_closing_waits_for_what_is_under_way(self, closed: Store) -> None:
        """Operations that began before the last ``close`` end as usual."""
        begun = 0

        async def put() -> TaskId[Any] | None:
            nonlocal begun
            begun += 1
            return await closed.add()

        async def close() -> None:
            while begun < 5:
                await anyio.lowlevel.checkpoint()
            await closed.backend.close()

        await closed.backend.open()
        ids = [task_id for task_id in await at_once([*[put] * 5, close]) if task_id]
        assert len(ids) == 5
        if self.keeps_tasks:
            await closed.backend.open()
            assert None not in await closed.get_tasks(ids)
            await closed.backend.close()

    async def test_one_loop_at_a_time(self, store: Store, anyio_backend_name: str) -> None:
        """While it is open in one event loop, every use in another one raises `UsageError`."""

        async def use() -> None:
            for call in (store.backend.open, store.add, store.backend.close):
                with pytest.raises(UsageError):
                    await call()

        await _in_another_loop(use, anyio_backend_name)
        await store.add()

    async def test_a_loop_that_ended_holds_nothing(
        self, closed: Store, anyio_backend_name: str
    ) -> None:
        """A backend whose loop ended without ``close`` may be opened in the next loop."""
        await _in_another_loop(closed.backend.open, anyio_backend_name)
        await closed.backend.open()
        await closed.status(await closed.add())
        await closed.backend.close()

    async def test_the_clock_is_shared(self, store: Store) -> None:
        """The clock that a backend gives its users shows aware moments in UTC."""
        assert store.backend.clock.now().utcoffset() == timedelta()

    async def test_a_batch_is_judged_at_one_moment(self) -> None:
        """All tasks of a batch get the same times, even if the clock moves meanwhile."""
        clock = _RestlessClock()
        store = Store(self, self.make_backend(clock), clock)
        await store.backend.open()
        ids = await store.add_many(5)
        taken = await store.take(5)
        await store.finish([Outcome.success(task.lease, b"") for task in taken[:3]])
        await store.finish([Outcome.failure(task.lease, "no") for task in taken[3:]])
        infos = [await store.info(task_id) for task_id in ids]
        assert len({info.enqueued_at for info in infos}) == 1
        assert {info.eta for info in infos} == {info.enqueued_at for info in infos}
        assert len({info.started_at for info in infos}) == 1
        assert len({info.finished_at for info in infos}) == 2
        await store.backend.close()

    async def test_a_cancelled_reservation_is_handed_back(self, store: Store) -> None:
        """Wherever it is cancelled, its tasks are due again with no attempt spent."""
        ids = await store.add_many(3)
        for steps in range(0, 300, 3):
            reserved: list[object] = []

            async def take(into: list[object] = reserved) -> None:
                into.extend(await store.take())

            await _cancelled(take, steps)
            if reserved:  # the cancellation came too late
                return
            infos = await store.get_tasks(ids)
            tasks = await store.take()
            assert [task.id for task in tasks] == ids, infos
            assert {task.attempt for task in tasks} == {1}
            await store.finish([Outcome.release(task.lease) for task in tasks])

    @pytest.mark.parametrize("operation", [verb.name for verb in VERBS])
    async def test_a_cancelled_caller_leaves_no_lock(self, store: Store, operation: str) -> None:
        """Wherever an operation is cancelled, the next ones work."""
        await check_cancelled(CALLS[operation], store, [store])

    async def test_a_cancelled_caller_leaves_no_lock_elsewhere(
        self, store: Store, peer: Store
    ) -> None:
        """The operations of another instance work as well."""
        await check_cancelled(CALLS["enqueue"], store, [peer, store])


async def check_cancelled(
    call: Callable[[Any, Lease], Awaitable[object]], store: Store, users: list[Store]
) -> None:
    """Check that users can go on, wherever a call was cancelled."""
    for steps in range(_ROUNDS):
        task = await store.taken()
        await _cancelled(partial(call, store.backend, task.lease), steps)
        with anyio.fail_after(PATIENCE):
            for user in users:
                await user.add(queue="other")
            left = [task, *await store.take()]
            await store.finish([Outcome.success(each.lease, b"") for each in left])


# A call of each verb, for an attempt that has a lease.
CALLS: Final[dict[str, Callable[[Backend, Lease], Awaitable[object]]]] = {
    "enqueue": lambda backend, _: backend.enqueue([new_task(queue="more"), new_task(queue="more")]),
    "reserve": lambda backend, _: backend.reserve("worker", ("other",), 5, LEASE),
    "finish": lambda backend, lease: backend.finish([Outcome.failure(lease, "no")]),
    "sweep": lambda backend, _: backend.sweep(3),
    "prune": lambda backend, _: backend.prune(0, 1),
    "cancel": lambda backend, lease: backend.cancel(lease.task_id),
    "set_progress": lambda backend, lease: backend.set_progress(lease, Progress(done=1)),
    "get_tasks": lambda backend, lease: backend.get_tasks([lease.task_id]),
    "get_results": lambda backend, lease: backend.get_results([lease.task_id]),
    "load_task": lambda backend, lease: backend.load_task(lease.task_id),
}


async def _check_not_open(backend: Backend) -> None:
    """Check that every operation raises `UsageError`."""
    lease = Lease(new_task_id(), 1)
    for verb in VERBS:
        with pytest.raises(UsageError):
            await CALLS[verb.name](backend, lease)
    with pytest.raises(UsageError):
        async with backend.listen("tasks"):
            pass


async def _cancelled(call: Callable[[], Awaitable[object]], steps: int) -> None:
    """Call, and cancel the caller after so many steps of the event loop."""

    async def run() -> None:
        await call()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


async def _in_another_loop(function: Callable[[], Awaitable[None]], kind: str) -> None:
    """Run a function in an event loop of its own, in another thread."""
    await anyio.to_thread.run_sync(partial(anyio.run, function, backend=kind))
