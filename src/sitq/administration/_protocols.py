"""The protocol of stores that can be administered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sitq.protocols import Backend, LeaseKeeper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.administration._models import (
        BulkResult,
        Count,
        FailedAttempt,
        Overview,
        QueuePause,
        TaskChange,
        TaskFilter,
        TaskPage,
        WorkerInfo,
        WorkerOrders,
        WorkerReport,
        WorkerState,
    )
    from sitq.ids import TaskId
    from sitq.models import Task

__all__ = ["AdminBackend", "WorkerKeeper"]


class WorkerKeeper(LeaseKeeper, Protocol):
    """A lease keeper that also reports the worker. All methods block."""

    def report(self, report: WorkerReport) -> WorkerOrders:
        """Store what a worker says of itself, and return what it is to do.

        1. The first report of an id adds the worker, each further one replaces what was said.
           ``seen_at`` becomes now.
        2. An order of `AdminBackend.order_worker` stays until the worker has signed off.
        3. ``paused`` names each queue whose pause has no end, or one later than now.

        Raises:
            BackendError: the store failed.
        """
        ...

    def deregister(self, worker_id: str) -> None:
        """Remove a worker that has ended. An unknown id is fine.

        Raises:
            BackendError: the store failed.
        """
        ...


@runtime_checkable
class AdminBackend(Backend, Protocol):
    """A store that can be looked into and steered.

    With these methods, the methods of `Backend` have further rules:

    - `Backend.reserve` and every other way on which tasks are handed over pass over a paused queue.
      ``wait`` counts the end of a pause as the moment from which its tasks are due.
    - `Backend.finish` records an attempt of a ``failure`` or ``retry``, and `Backend.sweep` one of
      a task that it reclaims. The last 10 of a task are kept; they go with their task.
    - `Backend.sweep` removes workers that have not reported for an hour.
    - A pause that begins, and an order to a worker, wake the listeners of ``cancels``; one that
      ends wakes those of ``tasks``.
    """

    async def list_tasks(self, where: TaskFilter, limit: int, cursor: str | None) -> TaskPage:
        """Return a page of the tasks that match.

        1. With a status of pending tasks, they come by queue, then in the order in which they are
           reserved. All other lists come by id, the newest first.
        2. At most ``limit`` tasks (1 to 1,000).
        3. ``cursor`` is that of the page before, for the same filter; ``None``: from the start. A
           task that exists all the time, and keeps its place in the order, is on one page exactly.
        4. The call looks at 10,000 rows or so at most, and then returns what it has, with a cursor.

        Raises:
            ValidationError: the cursor is not one of this filter.
        """
        ...

    async def count_tasks(self, where: TaskFilter, most: int, seconds: float) -> Count:
        """Count the tasks that match: up to ``most``, and for so many seconds."""
        ...

    async def overview(self) -> Overview:
        """Return the queues, the workers, and what is not served.

        The cost grows with the number of queues and workers. Counts end at 10,001 each.
        """
        ...

    async def pause_queue(self, pause: QueuePause) -> None:
        """Pause a queue, one that has never had a task too; replace an earlier pause.

        ``pause.at`` is ignored: it becomes now. Once this returns, no task of the queue is handed
        over until it is resumed or ``until`` has come. Running tasks go on; tasks expire.
        """
        ...

    async def resume_queue(self, queue: str) -> bool:
        """End the pause of a queue; return whether there was one."""
        ...

    async def list_pauses(self) -> list[QueuePause]:
        """Return the pauses whose end has not come, by name."""
        ...

    async def change_tasks(
        self,
        change: TaskChange,
        where: TaskFilter,
        limit: int,
        cursor: str | None,
        *,
        dry_run: bool,
    ) -> BulkResult:
        """Change up to ``limit`` tasks that match, in one transaction.

        - ``cancel`` as `Backend.cancel`; final ones are skipped.
        - ``delete`` removes a task that is not in progress, with its result and attempts; the
          others are skipped.
        - ``postpone`` sets the eta of a pending task, if it is later than the present one; the
          others are skipped.
        - ``set_priority`` sets the priority of a pending task; the others are skipped.

        The tasks are those of `list_tasks` with the same arguments, but for pending ones that have
        the new eta or priority already: these are not counted, since a list that goes by eta and
        priority may come to a task again after its change. In a dry run nothing changes.
        """
        ...

    async def load_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[Task | None]:
        """Return each task as `Backend.load_task` does, in order.

        ``None`` stands for an unknown id, and for a row that cannot be read.
        """
        ...

    async def retry_tasks(
        self, repeats: Sequence[Task], *, again: bool
    ) -> list[TaskId[Any] | None]:
        """Store tasks that each repeat the task of their ``retry_of``, in one transaction.

        Returns, in order: the id of the task that was stored, or of the one that holds its unique
        key; ``None`` where nothing was done, since the old task is unknown, is not final, or was
        repeated before (unless ``again``). `TaskInfo.retried_as` of the old task becomes the
        returned id.
        """
        ...

    async def replace_task(self, task: Task) -> bool:
        """Give a pending task the eta and payload of ``task``; return whether it was pending.

        An eta of ``None`` becomes the present moment.
        """
        ...

    async def get_attempts(self, task_id: TaskId[Any]) -> list[FailedAttempt]:
        """Return the last 10 failed attempts of a task, the oldest first.

        Raises:
            TaskNotFoundError: the id is unknown.
        """
        ...

    async def list_workers(self) -> list[WorkerInfo]:
        """Return the workers, by host, process and id. Those that are lost say so."""
        ...

    async def order_worker(self, worker_id: str, state: WorkerState) -> bool:
        """Ask a worker to become ``quiet`` or ``stopping``; return whether the id is known.

        ``active`` takes a ``quiet`` back.
        """
        ...

    def lease_keeper(self) -> WorkerKeeper:
        """Return a lease keeper for the calling thread."""
        ...
