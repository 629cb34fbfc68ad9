"""Checks of opening and closing, of one moment for a batch, and of callers that are cancelled."""

# Checks are made of assertions, on small numbers.
# ruff: noqa: S101, PLR2004

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sitq.backends._operations import VERBS
from sitq.errors import UsageError
from sitq.ids import new_task_id
from sitq.models import Lease, Outcome, OutcomeKind, Progress
from sitq.states import TaskStatus
from sitq.testing._clock import FakeClock
from sitq.testing._conformance._store import LEASE, PATIENCE, QUEUES, StoreUnderTest, new_task
from sitq.testing._conformance._suite import Suite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.ids import TaskId
    from sitq.protocols import Backend

__all__ = ["CALLS", "OpenChecks"]

_ROUNDS: Final = 24


class _RestlessClock(FakeClock):
    """A clock that has moved on at every look."""

    def now(self) -> datetime:
        self.jump(0.001)
        return super().now()


class OpenChecks(Suite):
    """`Backend.open`, `Backend.close`, and what holds for every operation."""

    async def test_opening_and_closing_nest(self, clock: FakeClock) -> None:
        """The store works from the first ``open`` until the last ``close``."""
        backend = self.make_backend(clock)
        store = self.wrap(backend, clock)
        await backend.open()
        task_id = await store.add()
        await backend.open()
        await backend.open()
        await backend.close()
        await backend.close()
        assert await store.status(task_id) is TaskStatus.PENDING
        await backend.close()
        with pytest.raises(UsageError):
            await store.add()

    async def test_a_backend_that_is_not_open_says_so(self, clock: FakeClock) -> None:
        """Every operation before the first ``open`` and after the last ``close`` raises."""
        backend = self.make_backend(clock)
        await _check_not_open(backend)
        await backend.open()
        await backend.close()
        await _check_not_open(backend)

    async def test_a_backend_is_opened_again(self, clock: FakeClock) -> None:
        """After the last ``close`` it may be opened again; what it kept is there."""
        backend = self.make_backend(clock)
        store = self.wrap(backend, clock)
        await backend.open()
        task_id = await store.add()
        await backend.close()
        await backend.open()
        found = await backend.get_tasks([task_id])
        assert (found != [None]) is self.keeps_tasks
        assert len(await backend.enqueue([new_task()])) == 1
        await backend.close()

    async def test_users_at_once_are_all_counted(self, clock: FakeClock) -> None:
        """Many that open at the same time share one store."""
        backend = self.make_backend(clock)
        store = self.wrap(backend, clock)

        async def use() -> None:
            await backend.open()
            await store.add()
            await anyio.lowlevel.checkpoint()
            await store.add()
            await backend.close()

        await backend.open()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(use)
        assert len(await store.take()) == 20
        await backend.close()

    async def test_closing_waits_for_what_is_under_way(self, clock: FakeClock) -> None:
        """Operations that began before the last ``close`` end as if it came later."""
        backend = self.make_backend(clock)
        ids: list[TaskId[Any]] = []
        begun = 0

        async def put() -> None:
            nonlocal begun
            begun += 1
            ids.extend(await backend.enqueue([new_task()]))

        await backend.open()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(put)
                while begun < 5:
                    await anyio.lowlevel.checkpoint()
                await backend.close()
        assert len(ids) == 5
        if self.keeps_tasks:
            await backend.open()
            assert None not in await backend.get_tasks(ids)
            await backend.close()

    async def test_one_loop_at_a_time(self, store: StoreUnderTest, anyio_backend_name: str) -> None:
        """In a second event loop, while it is open in the first, every use raises `UsageError`."""

        async def use() -> None:
            with pytest.raises(UsageError):
                await store.backend.open()
            with pytest.raises(UsageError):
                await store.backend.get_tasks([])
            with pytest.raises(UsageError):
                await store.backend.close()

        await _in_another_loop(use, anyio_backend_name)
        await store.add()

    async def test_a_loop_that_ended_holds_nothing(
        self, clock: FakeClock, anyio_backend_name: str
    ) -> None:
        """A backend whose loop ended without ``close`` may be opened in the next loop."""
        backend = self.make_backend(clock)
        await _in_another_loop(backend.open, anyio_backend_name)
        await backend.open()
        task_id = await self.wrap(backend, clock).add()
        assert len(await backend.get_tasks([task_id])) == 1
        await backend.close()

    async def test_the_clock_is_shared(self, store: StoreUnderTest) -> None:
        """A backend tells which clock its users are to go by."""
        assert isinstance(store.backend.clock.now(), datetime)
        assert store.backend.clock.now().utcoffset() == timedelta()

    async def test_a_batch_is_judged_at_one_moment(self) -> None:
        """All tasks of a batch get the same times, even if the clock moves meanwhile."""
        clock = _RestlessClock()
        backend = self.make_backend(clock)
        await backend.open()
        ids = await backend.enqueue([new_task() for _ in range(5)])
        taken = (await backend.reserve("worker", QUEUES, 5, LEASE)).tasks
        await backend.finish([Outcome.success(task.lease, b"") for task in taken[:3]])
        await backend.finish([Outcome.failure(task.lease, "no") for task in taken[3:]])
        infos = [info for info in await backend.get_tasks(ids) if info]
        assert len({info.enqueued_at for info in infos}) == 1
        assert {info.eta for info in infos} == {info.enqueued_at for info in infos}
        assert len({info.started_at for info in infos}) == 1
        assert len({info.finished_at for info in infos}) == 2
        await backend.close()

    async def test_a_cancelled_reservation_is_handed_back(self, store: StoreUnderTest) -> None:
        """However far it had come, its tasks are due again with no attempt spent."""
        ids = await store.backend.enqueue([new_task() for _ in range(3)])
        for steps in range(0, 300, 3):
            reserved: list[object] = []

            async def take(into: list[object] = reserved) -> None:
                into.extend(await store.take())

            await _cancelled(take, steps)
            if reserved:  # the cancellation came too late
                return
            infos = await store.backend.get_tasks(ids)
            tasks = await store.take()
            assert [task.id for task in tasks] == ids, infos
            assert {task.attempt for task in tasks} == {1}
            for task in tasks:
                await store.end(OutcomeKind.RELEASE, task.lease)

    @pytest.mark.parametrize("operation", [verb.name for verb in VERBS])
    async def test_a_cancelled_caller_leaves_no_lock(
        self, store: StoreUnderTest, operation: str
    ) -> None:
        """Wherever an operation is cancelled, the next ones work, here and elsewhere."""
        call = CALLS[operation]
        peer = self.make_peer(FakeClock()) if operation == "enqueue" else None
        if peer is not None:
            await peer.open()
        for steps in range(_ROUNDS):
            task = await store.taken()
            await _cancelled(partial(call, store.backend, task.lease), steps)
            with anyio.fail_after(PATIENCE):
                for backend in filter(None, (peer, store.backend)):
                    await backend.enqueue([new_task(queue="other")])
                left = await store.take()
                await store.backend.finish(
                    [Outcome.success(each.lease, b"") for each in [task, *left]]
                )
        if peer is not None:
            await peer.close()


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
    """Make sure that a backend refuses all that needs an open one."""
    lease = Lease(new_task_id(), 1)
    for verb in VERBS:
        with pytest.raises(UsageError):
            await CALLS[verb.name](backend, lease)
    with pytest.raises(UsageError):
        async with backend.listen("tasks"):
            pass


async def _cancelled(call: Callable[[], Awaitable[object]], steps: int) -> None:
    """Call, and cancel the caller after so many turns of the event loop."""

    async def run() -> None:
        await call()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


async def _in_another_loop(function: Callable[[], Awaitable[None]], kind: str) -> None:
    """Run to the end in an event loop of its own, in another thread."""

    async def main() -> None:
        await function()

    await anyio.to_thread.run_sync(lambda: anyio.run(main, backend=kind))
