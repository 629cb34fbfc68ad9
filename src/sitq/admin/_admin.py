"""`Admin`: look into a store, and steer its tasks, queues and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq._argument_checks import checked_backend, checked_serializer
from sitq._builtin_types import plain
from sitq._logging import Log
from sitq._validation import check_moment, check_priority, check_queue, is_storable
from sitq.admin._bulk import in_batches, make_due, retry_page
from sitq.administration import (
    AdminBackend,
    BulkChange,
    QueuePause,
    TaskChange,
    TaskFilter,
    WorkerState,
)
from sitq.errors import UsageError, ValidationError
from sitq.queue._queue import checked_id
from sitq.queue._store_client import StoreClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sitq.administration import (
        BulkResult,
        Count,
        FailedAttempt,
        Overview,
        TaskPage,
        WorkerInfo,
    )
    from sitq.protocols import Backend, Serializer

__all__ = ["Admin"]

_log: Final = Log(__name__)

_EVERYTHING: Final = TaskFilter()
_MAX_PAGE: Final = 1000
_COUNTED: Final = 100_001
_COUNT_SECONDS: Final = 0.1


class Admin(StoreClient):
    """Looks into a store, and steers its tasks, queues and workers. For asyncio and trio.

    Use it as ``async with Admin(backend) as admin:``, or call `connect` and `close`. The first use
    connects by itself. It needs no function of the tasks: it runs nothing.

    An admin without the keys of signed tasks can list, cancel, delete, postpone and pause, and
    change priorities. It cannot make a worker run anything that was not due to run: `retry_tasks`
    skips signed tasks, and `run_now` refuses them.

    Args:
        backend: a store that is an `AdminBackend`, as all of sitq's are.
        serializer: the one of the queues and workers, where it has keys. ``None``: msgpack.

    Raises:
        UsageError: the store is no `AdminBackend`.
        ValidationError: ``backend`` is not a store, or ``serializer`` not a serializer.
    """

    def __init__(self, backend: Backend, serializer: Serializer | None = None) -> None:
        checked_backend(backend)
        if not isinstance(backend, AdminBackend):
            raise UsageError(f"Admin: {backend!r} is no sitq.administration.AdminBackend")
        self._backend: Final[AdminBackend] = backend
        self._serializer: Final = checked_serializer(serializer)
        super().__init__(backend)

    def __repr__(self) -> str:
        return f"Admin({self._backend!r})"

    # -- looking -----------------------------------------------------------------------------

    async def list_tasks(
        self, where: TaskFilter = _EVERYTHING, *, limit: int = 100, cursor: str | None = None
    ) -> TaskPage:
        """Return a page of the tasks that match, the newest first.

        Pending tasks (also scheduled, due and retrying ones), where the filter asks for them, come
        by queue and in the order in which they are reserved.

        Args:
            where: which tasks.
            limit: at most so many (1 to 1,000).
            cursor: that of the page before, with the same filter; ``None``: the first page.

        Raises:
            ValidationError: an argument is out of its range, or the cursor is of another filter.
            BackendError: the store could not be asked.
        """
        _check_filter(where)
        _check_limit(limit, _MAX_PAGE)
        await self._handle.use()
        return await self._backend.list_tasks(where, limit, _checked_cursor(cursor))

    async def count_tasks(self, where: TaskFilter = _EVERYTHING) -> Count:
        """Count the tasks that match, up to 100,001 of them and for about a tenth of a second.

        Args:
            where: which tasks.

        Returns:
            The number, and whether it is exact.

        Raises:
            BackendError: the store could not be asked.
        """
        _check_filter(where)
        await self._handle.use()
        return await self._backend.count_tasks(where, _COUNTED, _COUNT_SECONDS)

    async def overview(self) -> Overview:
        """Return the queues, the workers, and what no worker serves.

        Raises:
            BackendError: the store could not be asked.
        """
        await self._handle.use()
        return await self._backend.overview()

    async def get_attempts(self, task_id: str) -> list[FailedAttempt]:
        """Return the last 10 failed attempts of a task, the oldest first.

        Args:
            task_id: the task's id.

        Raises:
            TaskNotFoundError: the store does not know the task.
            BackendError: the store could not be asked.
        """
        known_id = checked_id(task_id)
        await self._handle.use()
        return await self._backend.get_attempts(known_id)

    # -- queues ------------------------------------------------------------------------------

    async def pause_queue(
        self, queue: str, *, reason: str = "", by: str = "", until: datetime | None = None
    ) -> None:
        """Pause a queue: no worker gets a task of it, until it is resumed or ``until`` has come.

        Running tasks go on. A queue that is paused already gets the new reason and end.

        Args:
            queue: the name of the queue, which need not have had a task.
            reason: a short text for people, at most 1,000 characters.
            by: who pauses it, at most 256 characters.
            until: when it goes on by itself, an aware datetime; ``None``: when it is resumed. One
                that is over ends the pause at once.

        Raises:
            ValidationError: an argument is out of its range or of the wrong type.
            BackendError: the store could not do it.
        """
        name = check_queue("queue", queue)
        now = self._backend.clock.now()
        pause = QueuePause(
            queue=name,
            reason=_checked_text("reason", reason, 1000),
            by=_checked_text("by", by, 256),
            at=now,
            until=None if until is None else check_moment("until", until),
        )
        await self._handle.use()
        await self._backend.pause_queue(pause)
        end = "" if pause.until is None else f" until {pause.until.isoformat()}"
        if pause.until is not None and pause.until <= now:
            _log.warning("queue %s is not paused: its pause%s is over", name, end)
            return
        _log.info("queue %s is paused%s (by %r, reason %r)", name, end, pause.by, pause.reason)

    async def resume_queue(self, queue: str) -> bool:
        """End the pause of a queue; its workers go on at once.

        Args:
            queue: the name of the queue.

        Returns:
            False if it was not paused.

        Raises:
            ValidationError: this is not the name of a queue.
            BackendError: the store could not do it.
        """
        name = check_queue("queue", queue)
        await self._handle.use()
        was_paused = await self._backend.resume_queue(name)
        if was_paused:
            _log.info("queue %s is resumed", name)
        return was_paused

    async def list_pauses(self) -> list[QueuePause]:
        """Return the pauses that have not ended, by the queue's name.

        Raises:
            BackendError: the store could not be asked.
        """
        await self._handle.use()
        return await self._backend.list_pauses()

    # -- many tasks --------------------------------------------------------------------------

    async def cancel_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """Cancel the tasks that match, as `TaskQueue.cancel` does.

        Like all bulk operations, it works in transactions of 1,000 tasks. An error or an
        interruption leaves what was done before; to call it again does no harm.

        Args:
            where: which tasks.
            dry_run: only find out what would be done.
            limit: at most about so many tasks in this call; ``None``: all.
            cursor: that of the result before, with the same filter; ``None``: from the start.

        Raises:
            ValidationError: an argument is out of its range, or the cursor is of another filter.
            BackendError: the store could not do it; what was done before stays done.
        """
        change = TaskChange(BulkChange.CANCEL)
        return await self._change(change, where, limit, cursor, dry_run=dry_run)

    async def delete_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """Remove the tasks that match, with their results; one that runs is skipped.

        The arguments and errors are those of `cancel_tasks`.
        """
        change = TaskChange(BulkChange.DELETE)
        return await self._change(change, where, limit, cursor, dry_run=dry_run)

    async def postpone_tasks(
        self,
        where: TaskFilter,
        eta: datetime,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """Set a later eta of the pending tasks that match; the others are skipped.

        Args:
            where: which tasks.
            eta: the earliest moment that they may start, an aware datetime.
            dry_run: only find out what would be done.
            limit: at most about so many tasks in this call; ``None``: all.
            cursor: that of the result before, with the same filter; ``None``: from the start.

        Raises:
            ValidationError: an argument is out of its range, or the cursor is of another filter.
            BackendError: the store could not do it; what was done before stays done.
        """
        change = TaskChange(BulkChange.POSTPONE, eta=check_moment("eta", eta))
        return await self._change(change, where, limit, cursor, dry_run=dry_run)

    async def set_priority(
        self,
        where: TaskFilter,
        priority: int,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """Set the priority of the pending tasks that match; the others are skipped.

        Args:
            where: which tasks.
            priority: -100 to 100; higher runs first.
            dry_run: only find out what would be done.
            limit: at most about so many tasks in this call; ``None``: all.
            cursor: that of the result before, with the same filter; ``None``: from the start.

        Raises:
            ValidationError: an argument is out of its range, or the cursor is of another filter.
            BackendError: the store could not do it; what was done before stays done.
        """
        change = TaskChange(BulkChange.SET_PRIORITY, priority=check_priority("priority", priority))
        return await self._change(change, where, limit, cursor, dry_run=dry_run)

    async def _change(
        self,
        change: TaskChange,
        where: TaskFilter,
        limit: int | None,
        cursor: str | None,
        *,
        dry_run: bool,
    ) -> BulkResult:
        async def step(size: int, cursor: str | None) -> BulkResult:
            return await self._backend.change_tasks(change, where, size, cursor, dry_run=dry_run)

        return await self._in_batches(
            change.kind.value, step, where, limit, cursor, dry_run=dry_run
        )

    async def retry_tasks(
        self,
        where: TaskFilter,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BulkResult:
        """Enqueue the final tasks that match once more, each as a new task that is due at once.

        A task that was retried before is skipped, so a second call does nothing. A successful task
        is skipped unless the filter has ``status="success"`` or ``ids``. A signed task is skipped
        unless this admin has its keys.

        The arguments and errors are those of `cancel_tasks`.
        """

        async def step(size: int, cursor: str | None) -> BulkResult:
            return await retry_page(
                self._backend, self._serializer, where, size, cursor, dry_run=dry_run
            )

        return await self._in_batches("retry", step, where, limit, cursor, dry_run=dry_run)

    async def _in_batches(
        self,
        name: str,
        step: Callable[[int, str | None], Awaitable[BulkResult]],
        where: TaskFilter,
        limit: int | None,
        cursor: str | None,
        *,
        dry_run: bool,
    ) -> BulkResult:
        _check_filter(where)
        if limit is not None:
            _check_limit(limit, None)
        if type(dry_run) is not bool:
            raise ValidationError(f"dry_run: give a bool (got {type(dry_run).__name__})")
        name = f"{name}, dry run" if dry_run else name

        async def next_step(size: int, cursor: str | None) -> BulkResult:
            await self._handle.use()  # a close ends the operation, though others use the store
            return await step(size, cursor)

        result = await in_batches(next_step, limit, _checked_cursor(cursor))
        _log.info("%s: %d of the %d tasks that match", name, result.done, result.matched)
        return result

    async def run_now(self, task_id: str) -> bool:
        """Make a pending task due at once.

        Args:
            task_id: the task's id.

        Returns:
            False if it is not pending.

        Raises:
            TaskNotFoundError: the store does not know the task.
            SerializationError: the task is signed, and this admin does not have its keys.
            BackendError: the store could not do it.
        """
        known_id = checked_id(task_id)
        await self._handle.use()
        old = await self._backend.load_task(known_id)
        was_pending = await self._backend.replace_task(make_due(self._serializer, old))
        if was_pending:
            _log.info("task %s was made due at once", known_id)
        return was_pending

    # -- workers -----------------------------------------------------------------------------

    async def list_workers(self) -> list[WorkerInfo]:
        """Return the workers, by host and process; those that do not report any more say so.

        Raises:
            BackendError: the store could not be asked.
        """
        await self._handle.use()
        return await self._backend.list_workers()

    async def quiet_worker(self, worker_id: str) -> bool:
        """Ask a worker to reserve no more tasks, and to finish those that run.

        Args:
            worker_id: the worker's id.

        Returns:
            False if the store does not know the worker.

        Raises:
            BackendError: the store could not do it.
        """
        return await self._order(worker_id, WorkerState.QUIET)

    async def resume_worker(self, worker_id: str) -> bool:
        """Take back what `quiet_worker` has asked for; see there for arguments and errors."""
        return await self._order(worker_id, WorkerState.ACTIVE)

    async def stop_worker(self, worker_id: str) -> bool:
        """Ask a worker to end, as `Worker.stop` does; see `quiet_worker` for arguments and errors.

        It cannot be taken back.
        """
        return await self._order(worker_id, WorkerState.STOPPING)

    async def _order(self, worker_id: str, state: WorkerState) -> bool:
        name = _checked_text("worker_id", worker_id, 128)
        await self._handle.use()
        is_known = await self._backend.order_worker(name, state)
        if is_known:
            _log.info("worker %s was asked to be %s", name, state)
        return is_known


def _check_filter(where: object) -> None:
    if not isinstance(where, TaskFilter):
        raise ValidationError(f"where: give a TaskFilter (got {type(where).__name__})")


def _check_limit(limit: object, most: int | None) -> None:
    if type(limit) is not int or limit < 1 or (most is not None and limit > most):
        hint = "give an int of 1 or more" if most is None else f"give an int from 1 to {most:,}"
        raise ValidationError(f"limit: {hint} (got {type(limit).__name__})")


def _checked_cursor(cursor: object) -> str | None:
    if cursor is not None and not isinstance(cursor, str):
        hint = "give the cursor of a page, or None"
        raise ValidationError(f"cursor: {hint} (got {type(cursor).__name__})")
    return None if cursor is None else str(plain(cursor))


def _checked_text(name: str, value: object, longest: int) -> str:
    text = plain(value)
    if type(text) is not str or len(text) > longest or not is_storable(text):
        hint = f"give at most {longest:,} characters, as str"
        raise ValidationError(f"{name}: {hint} (got {type(value).__name__})")
    return text
