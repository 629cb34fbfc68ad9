"""What the checks of administration share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import pytest

from sitq.administration import (
    AdminBackend,
    BulkChange,
    QueuePause,
    TaskChange,
    TaskFilter,
    WorkerReport,
    WorkerState,
)
from sitq.testing._conformance._suite import Store, Suite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from sitq.administration import BulkResult, WorkerKeeper, WorkerOrders
    from sitq.ids import TaskId
    from sitq.testing._clock import FakeClock

__all__ = ["AdminStore", "AdminSuite", "make_report"]

T = TypeVar("T")


def make_report(now: datetime, **changes: Any) -> WorkerReport:
    """Make the report of a worker."""
    fields: dict[str, Any] = {
        "id": "worker",
        "host": "alpha",
        "pid": 4711,
        "version": "1.2.3",
        "queues": ("default",),
        "functions": ("jobs:a",),
        "slots": 10,
        "running": 0,
        "state": WorkerState.ACTIVE,
        "lease": 30.0,
        "started_at": now,
    }
    return WorkerReport(**(fields | changes))


class AdminStore(Store):
    """A store under test that can be administered."""

    @property
    def admin(self) -> AdminBackend:
        """Return the backend as an `AdminBackend`."""
        assert isinstance(self.backend, AdminBackend)
        return self.backend

    async def pause(
        self, queue: str, *, reason: str = "", by: str = "", until: datetime | None = None
    ) -> None:
        """Pause a queue."""
        at = self.backend.clock.now()
        pause = QueuePause(queue=queue, reason=reason, by=by, at=at, until=until)
        await self.admin.pause_queue(pause)

    async def listed(self, limit: int = 100, **where: Any) -> list[TaskId[Any]]:
        """Return the ids of all tasks that match, page by page."""
        filter_ = TaskFilter(**where)
        found: list[TaskId[Any]] = []
        cursor: str | None = None
        while True:
            page = await self.admin.list_tasks(filter_, limit, cursor)
            assert len(page.items) <= limit
            found += [info.task_id for info in page.items]
            cursor = page.cursor
            if cursor is None:
                return found

    async def change(
        self, kind: BulkChange, *, dry_run: bool = False, where: TaskFilter | None = None, **to: Any
    ) -> BulkResult:
        """Change all tasks that match, in one transaction."""
        change = TaskChange(kind, **to)
        return await self.admin.change_tasks(
            change, where or TaskFilter(), 1000, None, dry_run=dry_run
        )

    async def report(self, report: WorkerReport) -> WorkerOrders:
        """Report a worker, as it does itself."""
        return await self._keep(lambda keeper: keeper.report(report))

    async def deregister(self, worker_id: str) -> None:
        """Sign a worker off."""
        await self._keep(lambda keeper: keeper.deregister(worker_id))

    async def _keep(self, function: Callable[[WorkerKeeper], T]) -> T:
        """Call a function with a lease keeper, in another thread, as a worker does."""

        def run() -> T:
            keeper = self.admin.lease_keeper()
            try:
                return function(keeper)
            finally:
                keeper.close()

        return await anyio.to_thread.run_sync(run)


class AdminSuite(Suite):
    """The fixtures of the checks of administration."""

    @pytest.fixture
    async def peer(self, store: AdminStore, clock: FakeClock) -> AsyncIterator[AdminStore]:
        """The same store through another instance."""
        del store
        backend = self.make_peer(clock)
        if backend is None:
            pytest.skip("this store cannot be shared by two instances")
        await backend.open()
        yield AdminStore(self, backend, clock)
        await backend.close()

    @pytest.fixture
    def closed(self, clock: FakeClock) -> AdminStore:
        """The store under test, empty and not open yet."""
        return AdminStore(self, self.make_backend(clock), clock)
