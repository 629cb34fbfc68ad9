"""Bulk operations: batches of a bounded size, each one transaction of the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio

from sitq.administration import BulkResult, SkippedTask
from sitq.errors import SerializationError
from sitq.payload.signing import is_signed, seal, unseal
from sitq.queue._task_factory import make_repeat
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.administration import AdminBackend, TaskFilter
    from sitq.models import Task, TaskInfo
    from sitq.protocols import Serializer

__all__ = ["in_batches", "make_due", "retry_page"]

_BATCH: Final = 1000
_MAX_SKIPPED: Final = 1000
# The pause after a batch, as a share of what it took, and at most; in seconds.
_REST: Final = 0.5
_LONGEST_REST: Final = 0.05
_NOT_LOADED: Final = "it was removed meanwhile, or its row cannot be read"
_RETRIED_MEANWHILE: Final = "it was retried meanwhile"


async def in_batches(
    step: Callable[[int, str | None], Awaitable[BulkResult]], limit: int | None, cursor: str | None
) -> BulkResult:
    """Repeat a step until nothing is left or the limit is reached, and add the results up.

    Args:
        step: handles the tasks after a cursor, at most so many.
        limit: the number of tasks to handle; ``None``: all.
        cursor: where to begin.
    """
    matched = done = 0
    skipped: list[SkippedTask] = []
    while True:
        size = _BATCH if limit is None else min(_BATCH, limit - matched)
        start = time.perf_counter()
        part = await step(size, cursor)
        took = time.perf_counter() - start
        matched += part.matched
        done += part.done
        skipped += part.skipped[: _MAX_SKIPPED - len(skipped)]
        cursor = part.cursor
        if cursor is None or (limit is not None and matched >= limit):
            return BulkResult(matched, done, tuple(skipped), cursor)
        # Workers that wait for the lock of a file look for it now and then: leave it to them.
        await anyio.sleep(min(_REST * took, _LONGEST_REST))


async def retry_page(
    backend: AdminBackend,
    serializer: Serializer,
    where: TaskFilter,
    size: int,
    cursor: str | None,
    *,
    dry_run: bool,
) -> BulkResult:
    """Enqueue the final tasks of one page once more, in one transaction."""
    page = await backend.list_tasks(where, size, cursor)
    reasons = [(info.task_id, _reason_not_to_retry(info, where)) for info in page.items]
    wanted = [task_id for task_id, reason in reasons if reason is None]
    skipped = [SkippedTask(task_id, reason) for task_id, reason in reasons if reason is not None]
    repeats: list[Task] = []
    for task_id, old in zip(wanted, await backend.load_tasks(wanted), strict=True):
        if old is None:
            skipped.append(SkippedTask(task_id, _NOT_LOADED))
            continue
        try:
            repeat = seal(serializer, make_repeat(serializer, old))
            repeats.append(_refuse_foreign_seal(old, repeat))
        except SerializationError as error:
            skipped.append(SkippedTask(old.id, str(error)))
    if repeats and not dry_run:
        ids = await backend.retry_tasks(repeats, again=False)
        refused = [repeat.retry_of for repeat, new in zip(repeats, ids, strict=True) if new is None]
        skipped += [SkippedTask(each, _RETRIED_MEANWHILE) for each in refused if each is not None]
        return BulkResult(len(page.items), len(repeats) - len(refused), tuple(skipped), page.cursor)
    return BulkResult(len(page.items), len(repeats), tuple(skipped), page.cursor)


def _reason_not_to_retry(info: TaskInfo, where: TaskFilter) -> str | None:
    """Return why a task is not retried, or ``None``."""
    if not info.status.is_final:
        return f"it is not final ({info.status})"
    if info.retried_as is not None:
        return f"it was retried before, as {info.retried_as}"
    if info.status is TaskStatus.SUCCESS and where.status != "success" and where.ids is None:
        return "it has succeeded: to run it again, give its status or its id"
    return None


def make_due(serializer: Serializer, old: Task) -> Task:
    """Return a task as it is to be stored to be due at once.

    Raises:
        SerializationError: it is signed, and the serializer does not have its keys.
    """
    changes = {"payload": unseal(serializer, old), "eta": None}
    return _refuse_foreign_seal(old, seal(serializer, old.model_copy(update=changes)))


def _refuse_foreign_seal(old: Task, new: Task) -> Task:
    """Refuse a task with the signature of another one, or of an earlier version of itself."""
    if is_signed(new.payload) and new.payload == old.payload:
        raise SerializationError("it is signed: give the admin the serializer with the keys")
    return new
