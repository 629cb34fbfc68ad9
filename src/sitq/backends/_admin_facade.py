"""The public methods for the administration of stores, made once, as in ``_facade``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sitq.backends._facade import BackendMethods
from sitq.backends._operations import (
    CHANGE_TASKS,
    COUNT_TASKS,
    GET_ATTEMPTS,
    LIST_PAUSES,
    LIST_TASKS,
    LIST_WORKERS,
    LOAD_TASKS,
    ORDER_WORKER,
    OVERVIEW,
    PAUSE_QUEUE,
    REPLACE_TASK,
    RESUME_QUEUE,
    RETRY_TASKS,
)
from sitq.backends._task_filters import ChangeRequest, RetryRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.administration import (
        BulkResult,
        Count,
        FailedAttempt,
        Overview,
        QueuePause,
        TaskChange,
        TaskFilter,
        TaskPage,
        WorkerInfo,
        WorkerState,
    )
    from sitq.ids import TaskId
    from sitq.models import Task

__all__ = ["AdminMethods"]


class AdminMethods(BackendMethods):
    """The methods that `sitq.administration.AdminBackend` adds."""

    async def list_tasks(self, where: TaskFilter, limit: int, cursor: str | None) -> TaskPage:
        """See `sitq.administration.AdminBackend.list_tasks`."""
        return await self._call(LIST_TASKS, where, limit, cursor)

    async def count_tasks(self, where: TaskFilter, most: int, seconds: float) -> Count:
        """See `sitq.administration.AdminBackend.count_tasks`."""
        return await self._call(COUNT_TASKS, where, most, seconds)

    async def overview(self) -> Overview:
        """See `sitq.administration.AdminBackend.overview`."""
        return await self._call(OVERVIEW)

    async def pause_queue(self, pause: QueuePause) -> None:
        """See `sitq.administration.AdminBackend.pause_queue`."""
        await self._call(PAUSE_QUEUE, pause)

    async def resume_queue(self, queue: str) -> bool:
        """See `sitq.administration.AdminBackend.resume_queue`."""
        return await self._call(RESUME_QUEUE, queue)

    async def list_pauses(self) -> list[QueuePause]:
        """See `sitq.administration.AdminBackend.list_pauses`."""
        return await self._call(LIST_PAUSES)

    async def change_tasks(
        self,
        change: TaskChange,
        where: TaskFilter,
        limit: int,
        cursor: str | None,
        *,
        dry_run: bool,
    ) -> BulkResult:
        """See `sitq.administration.AdminBackend.change_tasks`."""
        request = ChangeRequest(change, where, limit, cursor, dry_run)
        return await self._call(CHANGE_TASKS, request)

    async def load_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[Task | None]:
        """See `sitq.administration.AdminBackend.load_tasks`."""
        return await self._call(LOAD_TASKS, task_ids)

    async def retry_tasks(
        self, repeats: Sequence[Task], *, again: bool
    ) -> list[TaskId[Any] | None]:
        """See `sitq.administration.AdminBackend.retry_tasks`."""
        return await self._call(RETRY_TASKS, RetryRequest(repeats, again))

    async def replace_task(self, task: Task) -> bool:
        """See `sitq.administration.AdminBackend.replace_task`."""
        return await self._call(REPLACE_TASK, task)

    async def get_attempts(self, task_id: TaskId[Any]) -> list[FailedAttempt]:
        """See `sitq.administration.AdminBackend.get_attempts`."""
        return await self._call(GET_ATTEMPTS, task_id)

    async def list_workers(self) -> list[WorkerInfo]:
        """See `sitq.administration.AdminBackend.list_workers`."""
        return await self._call(LIST_WORKERS)

    async def order_worker(self, worker_id: str, state: WorkerState) -> bool:
        """See `sitq.administration.AdminBackend.order_worker`."""
        return await self._call(ORDER_WORKER, worker_id, state)
