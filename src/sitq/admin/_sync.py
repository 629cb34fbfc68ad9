"""`SyncAdmin`: an `Admin` for code with no event loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._portal import Portal, PortalClient
from sitq.admin._admin import Admin
from sitq.administration import TaskFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from sitq.administration import (
        BulkResult,
        Count,
        FailedAttempt,
        Overview,
        QueuePause,
        TaskPage,
        WorkerInfo,
    )
    from sitq.protocols import Backend, Serializer

__all__ = ["SyncAdmin"]

T = TypeVar("T")

_EVERYTHING: Final = TaskFilter()


class SyncAdmin(PortalClient):
    """The methods of `Admin` for code with no event loop; any number of threads may share it.

    Use it as ``with SyncAdmin(backend) as admin:``, or call `connect` and `close`. The first use
    connects by itself. In a thread that runs an event loop each method raises `UsageError`.

    Args:
        backend: a store that is an `AdminBackend`, for this admin alone.
        serializer: the one of the queues and workers, where it has keys. ``None``: msgpack.

    Raises:
        UsageError: the store is no `AdminBackend`.
        ValidationError: ``backend`` is not a store, or ``serializer`` not a serializer.
    """

    def __init__(self, backend: Backend, serializer: Serializer | None = None) -> None:
        self._admin: Final = Admin(backend, serializer)
        super().__init__(Portal(self._admin.close, "SyncAdmin"), self._admin.connect)

    def __repr__(self) -> str:
        return f"Sync{self._admin!r}"

    def _run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **named: Any) -> T:
        return self._portal.run(partial(function, *args, **named))

    def list_tasks(
        self, where: TaskFilter = _EVERYTHING, *, limit: int = 100, cursor: str | None = None
    ) -> TaskPage:
        """See `Admin.list_tasks`."""
        return self._run(self._admin.list_tasks, where, limit=limit, cursor=cursor)

    def count_tasks(self, where: TaskFilter = _EVERYTHING) -> Count:
        """See `Admin.count_tasks`."""
        return self._run(self._admin.count_tasks, where)

    def overview(self) -> Overview:
        """See `Admin.overview`."""
        return self._run(self._admin.overview)

    def get_attempts(self, task_id: str) -> list[FailedAttempt]:
        """See `Admin.get_attempts`."""
        return self._run(self._admin.get_attempts, task_id)

    def pause_queue(
        self, queue: str, *, reason: str = "", by: str = "", until: datetime | None = None
    ) -> None:
        """See `Admin.pause_queue`."""
        self._run(self._admin.pause_queue, queue, reason=reason, by=by, until=until)

    def resume_queue(self, queue: str) -> bool:
        """See `Admin.resume_queue`."""
        return self._run(self._admin.resume_queue, queue)

    def list_pauses(self) -> list[QueuePause]:
        """See `Admin.list_pauses`."""
        return self._run(self._admin.list_pauses)

    def retry_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """See `Admin.retry_tasks`."""
        named = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        return self._run(self._admin.retry_tasks, where, **named)

    def cancel_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """See `Admin.cancel_tasks`."""
        named = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        return self._run(self._admin.cancel_tasks, where, **named)

    def delete_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """See `Admin.delete_tasks`."""
        named = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        return self._run(self._admin.delete_tasks, where, **named)

    def postpone_tasks(
        self,
        where: TaskFilter,
        eta: datetime,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """See `Admin.postpone_tasks`."""
        named = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        return self._run(self._admin.postpone_tasks, where, eta, **named)

    def set_priority(
        self,
        where: TaskFilter,
        priority: int,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """See `Admin.set_priority`."""
        named = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        return self._run(self._admin.set_priority, where, priority, **named)

    def run_now(self, task_id: str) -> bool:
        """See `Admin.run_now`."""
        return self._run(self._admin.run_now, task_id)

    def list_workers(self) -> list[WorkerInfo]:
        """See `Admin.list_workers`."""
        return self._run(self._admin.list_workers)

    def quiet_worker(self, worker_id: str) -> bool:
        """See `Admin.quiet_worker`."""
        return self._run(self._admin.quiet_worker, worker_id)

    def resume_worker(self, worker_id: str) -> bool:
        """See `Admin.resume_worker`."""
        return self._run(self._admin.resume_worker, worker_id)

    def stop_worker(self, worker_id: str) -> bool:
        """See `Admin.stop_worker`."""
        return self._run(self._admin.stop_worker, worker_id)
