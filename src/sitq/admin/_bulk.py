"""Bulk operations: batches of a bounded size, each one transaction of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq.administration import BulkResult, SkippedTask
from sitq.errors import SerializationError
from sitq.payload.signing import is_signed, seal, unseal
from sitq.queue._task_factory import make_repeat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.administration import AdminBackend, TaskFilter
    from sitq.models import Task
    from sitq.protocols import Serializer

__all__ = ["in_batches", "make_due", "retry_page"]

_BATCH: Final = 1000
_MAX_SKIPPED: Final = 1000
_NOT_RETRIED: Final = "it is not final, or was retried before"


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
        part = await step(size, cursor)
        matched += part.matched
        done += part.done
        skipped += part.skipped[: _MAX_SKIPPED - len(skipped)]
        cursor = part.cursor
        if cursor is None or (limit is not None and matched >= limit):
            return BulkResult(matched, done, tuple(skipped), cursor)


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
    wanted = [
        info.task_id for info in page.items if info.status.is_final and info.retried_as is None
    ]
    left = {info.task_id for info in page.items}.difference(wanted)
    skipped = [SkippedTask(task_id, _NOT_RETRIED) for task_id in left]
    repeats: list[Task] = []
    for old in await backend.load_tasks(wanted):
        if old is None:
            continue  # it was removed meanwhile
        try:
            repeat = seal(serializer, make_repeat(serializer, old))
            repeats.append(_refuse_foreign_seal(old, repeat))
        except SerializationError as error:
            skipped.append(SkippedTask(old.id, str(error)))
    if repeats and not dry_run:
        ids = await backend.retry_tasks(repeats, again=False)
        refused = [repeat.retry_of for repeat, new in zip(repeats, ids, strict=True) if new is None]
        skipped += [SkippedTask(old_id, _NOT_RETRIED) for old_id in refused if old_id is not None]
        return BulkResult(len(page.items), len(repeats) - len(refused), tuple(skipped), page.cursor)
    return BulkResult(len(page.items), len(repeats), tuple(skipped), page.cursor)


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
