"""What the checks share: fixtures that make and open a store, and a `Store` with its time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import anyio
import anyio.to_thread
import pytest

from sitq.backends._facade import BackendMethods
from sitq.ids import new_task_id
from sitq.models import Outcome, OutcomeKind, Task
from sitq.states import TaskStatus
from sitq.testing._clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from sitq.backends._operations import Verb
    from sitq.ids import TaskId
    from sitq.models import Lease, LeaseState, ReservedTask, Result, TaskInfo
    from sitq.protocols import Backend, Topic

__all__ = [
    "ENDS",
    "LEASE",
    "PATIENCE",
    "PUTS_BACK",
    "QUEUES",
    "Store",
    "Suite",
    "at_once",
    "make_outcome",
    "new_task",
]

T = TypeVar("T")

LEASE: Final = 30.0
QUEUES: Final = ("default",)
# Seconds after which a check fails that waits for an event.
PATIENCE: Final = 20.0
# The outcomes that end a task, with its status afterwards; the others make it pending again.
ENDS: Final = {
    OutcomeKind.SUCCESS: TaskStatus.SUCCESS,
    OutcomeKind.FAILURE: TaskStatus.FAILED,
    OutcomeKind.CANCELLED: TaskStatus.CANCELLED,
}
PUTS_BACK: Final = (OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION)


def new_task(**options: Any) -> Task:
    """Make a task with a fresh id."""
    return Task(**{"id": new_task_id(), "function": "checks:nothing", "payload": b"\x90"} | options)


def make_outcome(kind: OutcomeKind, lease: Lease, delay: float = 0.0) -> Outcome:
    """Make an outcome of any kind, with all that its kind carries."""
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


async def at_once(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Make calls at the same time; return their answers in the order in which they end."""
    answers: list[T] = []

    async def run(call: Callable[[], Awaitable[T]]) -> None:
        answers.append(await call())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(run, call)
    return answers


class Store(BackendMethods):
    """A backend with its time: the verbs of the protocol, and short cuts made of them.

    Args:
        suite: knows the store's time.
        backend: the backend that is checked.
        clock: the clock that it judges by, unless it judges by a server's.
    """

    def __init__(self, suite: Suite, backend: Backend, clock: FakeClock) -> None:
        self.backend: Final = backend
        self.tick: Final = suite.tick
        self._suite: Final = suite
        self._clock: Final = clock

    async def _call(self, verb: Verb[T], *arguments: Any) -> T:
        method: Callable[..., Awaitable[T]] = getattr(self.backend, verb.name)
        return await method(*arguments)

    async def now(self) -> datetime:
        """Return the moment that the store judges by."""
        return await self._suite.now(self._clock)

    async def advance(self, seconds: float) -> None:
        """Move the store's time on."""
        await self._suite.advance(self._clock, seconds)

    @asynccontextmanager
    async def just_before(self, seconds: float) -> AsyncIterator[None]:
        """Run the context just before a moment, and reach the moment afterwards."""
        await self.advance(seconds - self.tick)
        yield
        await self.advance(self.tick)

    @asynccontextmanager
    async def changes(self, topic: Topic) -> AsyncIterator[None]:
        """Check that what is done within the context wakes the listeners of a topic."""
        async with self.backend.listen(topic) as listener:
            yield
            with anyio.fail_after(PATIENCE):
                await listener.wait()

    async def later(self, seconds: float) -> datetime:
        """Return the moment so many seconds from now."""
        return await self.now() + timedelta(seconds=seconds)

    def same(self, left: datetime | None, right: datetime) -> bool:
        """Return whether two moments are the same, as far as the store's time can be held still."""
        return left is not None and abs(left - right) < timedelta(seconds=self.tick)

    async def add(self, **options: Any) -> TaskId[Any]:
        """Enqueue one task."""
        (task_id,) = await self.enqueue([new_task(**options)])
        return task_id

    async def add_many(self, count: int) -> list[TaskId[Any]]:
        """Enqueue tasks that differ in nothing but their ids."""
        return await self.enqueue([new_task() for _ in range(count)])

    async def take(
        self, limit: int = 100, *, queues: Sequence[str] = QUEUES, lease: float = LEASE
    ) -> list[ReservedTask]:
        """Reserve what is due."""
        return list((await self.reserve("worker", queues, limit, lease)).tasks)

    async def take_one(self) -> ReservedTask:
        """Reserve the one task that is due."""
        (task,) = await self.take()
        return task

    async def take_ids(
        self, limit: int = 100, *, queues: Sequence[str] = QUEUES, lease: float = LEASE
    ) -> list[TaskId[Any]]:
        """Reserve what is due, and return its ids."""
        return [task.id for task in await self.take(limit, queues=queues, lease=lease)]

    async def taken(self, **options: Any) -> ReservedTask:
        """Enqueue one task and reserve it; nothing else may be due."""
        task_id = await self.add(**options)
        task = await self.take_one()
        assert task.id == task_id
        return task

    async def wait(self, queues: Sequence[str] = QUEUES) -> float | None:
        """Return the wait of a reservation of no tasks."""
        reservation = await self.reserve("worker", queues, 0, LEASE)
        assert reservation.tasks == ()
        return reservation.wait

    async def end(self, kind: OutcomeKind, lease: Lease, delay: float = 0.0) -> bool:
        """Report one outcome; return whether it was accepted."""
        (accepted,) = await self.finish([make_outcome(kind, lease, delay)])
        return accepted

    async def reclaim(self, max_crashes: int = 3) -> int:
        """Sweep; return how many tasks were reclaimed."""
        return (await self.sweep(max_crashes)).reclaimed

    async def crash(self, max_crashes: int = 3) -> None:
        """Reserve the one task that is due, and reclaim it once its lease has ended."""
        await self.take_one()
        await self.advance(LEASE)
        assert await self.reclaim(max_crashes) == 1

    async def info(self, task_id: TaskId[Any]) -> TaskInfo:
        """Return what is known of a task that exists."""
        (info,) = await self.get_tasks([task_id])
        assert info is not None
        return info

    async def status(self, task_id: TaskId[Any]) -> TaskStatus:
        """Return the status of a task that exists."""
        return (await self.info(task_id)).status

    async def result(self, task_id: TaskId[Any]) -> Result[Any]:
        """Return the result of a task that is final."""
        result = (await self.get_results([task_id]))[task_id]
        assert result is not None
        return result

    async def picture(self, task_id: TaskId[Any]) -> tuple[object, ...]:
        """Return all that can be read of a task, to be compared with later."""
        return (await self.info(task_id), await self.get_results([task_id]))

    async def renew(self, leases: Sequence[Lease], seconds: float = LEASE) -> list[LeaseState]:
        """Renew leases as a worker does, from another thread."""

        def run() -> list[LeaseState]:
            keeper = self.backend.lease_keeper()
            try:
                return keeper.renew(leases, seconds)
            finally:
                keeper.close()

        return await anyio.to_thread.run_sync(run)


@pytest.mark.anyio
class Suite:
    """The fixtures of the checks, and what a store declares about itself."""

    #: The smallest difference of two moments, in seconds. A store that judges by a server's clock,
    #: which runs on, gives more than a check can take.
    tick: ClassVar[float] = 0.000001
    #: Whether tasks outlive the last ``close`` of an instance.
    keeps_tasks: ClassVar[bool] = True
    #: Whether a change through one instance wakes the listeners of another one, also in another
    #: process. Otherwise workers find new tasks by polling.
    wakes_peers: ClassVar[bool] = True

    def make_backend(self, clock: FakeClock) -> Backend:
        """Return a backend on an empty store of its own, not open yet.

        Args:
            clock: the clock that it is to judge by.
        """
        raise NotImplementedError("say in make_backend which backend is to be checked")

    def make_peer(self, clock: FakeClock) -> Backend | None:
        """Return another instance on the store that this test's `make_backend` made.

        Args:
            clock: the clock that it is to judge by.

        Returns:
            ``None``, unless overridden: the store cannot be shared.
        """
        del clock
        return None

    async def now(self, clock: FakeClock) -> datetime:
        """Return the moment that the store judges by; override it where that is a server's.

        Args:
            clock: the clock that `make_backend` got.
        """
        return clock.now()

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        """Move the store's time on; override it where that is a server's.

        Args:
            clock: the clock that `make_backend` got.
            seconds: by how much.
        """
        clock.advance(seconds)

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock of one check."""
        return FakeClock()

    @pytest.fixture
    def closed(self, clock: FakeClock) -> Store:
        """The store under test, empty and not open yet."""
        return Store(self, self.make_backend(clock), clock)

    @pytest.fixture
    async def store(self, closed: Store) -> AsyncIterator[Store]:
        """The store under test, open and empty."""
        await closed.backend.open()
        yield closed
        await closed.backend.close()

    @pytest.fixture
    async def peer(self, store: Store, clock: FakeClock) -> AsyncIterator[Store]:
        """The same store through another instance."""
        del store
        backend = self.make_peer(clock)
        if backend is None:
            pytest.skip("this store cannot be shared by two instances")
        await backend.open()
        yield Store(self, backend, clock)
        await backend.close()
