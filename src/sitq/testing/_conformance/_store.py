"""A store under test, with the short words that the checks are written in."""

# Checks are made of assertions.
# ruff: noqa: S101

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from sitq.ids import new_task_id
from sitq.models import Outcome, OutcomeKind, Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import Lease, LeaseState, ReservedTask, Result, TaskInfo
    from sitq.protocols import Backend
    from sitq.states import TaskStatus

__all__ = ["LEASE", "PATIENCE", "QUEUES", "StoreUnderTest", "make_outcome", "new_task"]

LEASE: Final = 30.0
QUEUES: Final = ("default",)
# How long, in seconds, a check waits for what has to happen; it never waits for nothing to happen.
PATIENCE: Final = 20.0


def new_task(**options: Any) -> Task:
    """A task with a fresh id."""
    return Task(**{"id": new_task_id(), "function": "checks:nothing", "payload": b"\x90"} | options)


def make_outcome(kind: OutcomeKind, lease: Lease, delay: float = 0.0) -> Outcome:
    """An outcome of any kind, with all that its kind carries."""
    match kind:
        case OutcomeKind.SUCCESS:
            return Outcome.success(lease, b"value")
        case OutcomeKind.FAILURE:
            return Outcome.failure(lease, "ValueError: no", "the frames")
        case OutcomeKind.RETRY:
            return Outcome.retry(lease, delay, "ValueError: again", "the frames")
        case OutcomeKind.UNKNOWN_FUNCTION:
            return Outcome.unknown_function(lease, delay)
        case OutcomeKind.RELEASE:
            return Outcome.release(lease)
        case OutcomeKind.CANCELLED:
            return Outcome.cancelled(lease)


class StoreUnderTest:
    """A backend that is open, and its time."""

    def __init__(
        self,
        backend: Backend,
        tick: float,
        now: Callable[[], Awaitable[datetime]],
        advance: Callable[[float], Awaitable[None]],
    ) -> None:
        self.backend: Final = backend
        self.tick: Final = tick
        self.now: Final = now
        self.advance: Final = advance

    async def later(self, seconds: float) -> datetime:
        """The moment so many seconds from now."""
        return await self.now() + timedelta(seconds=seconds)

    def same(self, left: datetime | None, right: datetime) -> bool:
        """Tell if two moments are the same, as far as the store's time can be held still."""
        return left is not None and abs(left - right) < timedelta(seconds=self.tick)

    async def add(self, **options: Any) -> TaskId[Any]:
        """Enqueue one task."""
        (task_id,) = await self.backend.enqueue([new_task(**options)])
        return task_id

    async def take(
        self, limit: int = 100, *, queues: Sequence[str] = QUEUES, lease: float = LEASE
    ) -> list[ReservedTask]:
        """Reserve what is due."""
        return list((await self.backend.reserve("worker", queues, limit, lease)).tasks)

    async def taken(self, **options: Any) -> ReservedTask:
        """Enqueue one task and reserve it; nothing else may be due."""
        task_id = await self.add(**options)
        (task,) = await self.take()
        assert task.id == task_id
        return task

    async def wait(self, queues: Sequence[str] = QUEUES) -> float | None:
        """What a reservation of nothing is told to wait."""
        reservation = await self.backend.reserve("worker", queues, 0, LEASE)
        assert reservation.tasks == ()
        return reservation.wait

    async def end(self, kind: OutcomeKind, lease: Lease, delay: float = 0.0) -> bool:
        """Report one outcome."""
        (accepted,) = await self.backend.finish([make_outcome(kind, lease, delay)])
        return accepted

    async def info(self, task_id: TaskId[Any]) -> TaskInfo:
        """What is known of a task that exists."""
        (info,) = await self.backend.get_tasks([task_id])
        assert info is not None
        return info

    async def status(self, task_id: TaskId[Any]) -> TaskStatus:
        """The status of a task that exists."""
        return (await self.info(task_id)).status

    async def result(self, task_id: TaskId[Any]) -> Result[Any]:
        """The result of a task that is final."""
        result = (await self.backend.get_results([task_id]))[task_id]
        assert result is not None
        return result

    async def picture(self, task_id: TaskId[Any]) -> tuple[object, ...]:
        """All that can be read of a task, to be compared with later."""
        results = await self.backend.get_results([task_id])
        return (await self.info(task_id), results[task_id])

    async def renew(self, leases: Sequence[Lease], seconds: float = LEASE) -> list[LeaseState]:
        """Renew leases as a worker does, from another thread."""

        def run() -> list[LeaseState]:
            keeper = self.backend.lease_keeper()
            try:
                return keeper.renew(leases, seconds)
            finally:
                keeper.close()

        return await anyio.to_thread.run_sync(run)
