"""Which tasks a filter means, and which of them a change can be made to; for all stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sitq.administration import BulkChange, BulkResult, SkippedTask
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.administration import TaskChange, TaskFilter
    from sitq.models import Task, TaskInfo

__all__ = [
    "MAX_SCANNED_ROWS",
    "ChangeRequest",
    "Condition",
    "RetryRequest",
    "conditions",
    "partition_tasks",
    "refusal",
]

MAX_SCANNED_ROWS: Final = 10_000
"""So many rows does one call look at, at most."""


class Condition(NamedTuple):
    """A condition of a statement: ``{}`` stands for the value, which is bound.

    ``kind`` is what PostgreSQL calls the type of the value.
    """

    sql: str
    kind: str
    value: Any


def conditions(where: TaskFilter) -> list[Condition]:
    """Return what the rows of a filter fulfil, but for its ids, its status and its worker.

    Column names are qualified with the table ``tasks``.
    """
    found = [
        Condition(f"tasks.{name} = {{}}", kind, getattr(where, name))
        for name, kind in (
            ("queue", "text"),
            ("function", "text"),
            ("priority", "int2"),
            ("unique_key", "text"),
            ("retry_of", "text"),
        )
    ]
    # A text before the first colon, or all of it.
    error = "(tasks.error = {0} OR substr(tasks.error, 1, length({0}) + 1) = {0} || ':')"
    found.append(Condition(error, "text", where.error))
    for name, column in (
        ("enqueued", "enqueued_at"),
        ("finished", "finished_at"),
        ("eta", "eta"),
    ):
        for side, sign in (("after", ">="), ("before", "<")):
            moment = getattr(where, f"{name}_{side}")
            found.append(Condition(f"tasks.{column} {sign} {{}}", "timestamptz", moment))
    return [each for each in found if each.value is not None]


class ChangeRequest(NamedTuple):
    """What to do to which tasks: the arguments of `AdminBackend.change_tasks`."""

    change: TaskChange
    where: TaskFilter
    limit: int
    cursor: str | None
    dry_run: bool


class RetryRequest(NamedTuple):
    """Which tasks to store as repetitions; ``again``: also of tasks that were repeated before."""

    repeats: Sequence[Task]
    again: bool


def refusal(info: TaskInfo, change: TaskChange) -> str | None:
    """Return why a change cannot be made to a task, or ``None``."""
    status = info.status
    match change.kind:
        case BulkChange.CANCEL if status.is_final:
            return f"it is final already ({status})"
        case BulkChange.DELETE if status is TaskStatus.IN_PROGRESS:
            return "it is in progress: cancel it first"
        case BulkChange.POSTPONE | BulkChange.SET_PRIORITY if status is not TaskStatus.PENDING:
            return f"it is not pending ({status})"
        case BulkChange.POSTPONE if change.eta is not None and change.eta <= info.eta:
            return "its eta is not earlier than the new one"
        case _:
            return None


def _is_changed(info: TaskInfo, change: TaskChange) -> bool:
    """Return whether a pending task is already as it is to be."""
    if info.status is not TaskStatus.PENDING:
        return False
    match change.kind:
        case BulkChange.POSTPONE:
            return info.eta == change.eta
        case BulkChange.SET_PRIORITY:
            return info.priority == change.priority
        case _:
            return False


def partition_tasks(
    infos: Sequence[TaskInfo], change: TaskChange, cursor: str | None
) -> tuple[list[TaskInfo], BulkResult]:
    """Return the tasks that a change can be made to, and what the change will have done."""
    accepted: list[TaskInfo] = []
    skipped: list[SkippedTask] = []
    for info in infos:
        if _is_changed(info, change):
            continue  # perhaps by this very operation: a list may come to a task twice
        reason = refusal(info, change)
        if reason is None:
            accepted.append(info)
        else:
            skipped.append(SkippedTask(info.task_id, reason))
    matched = len(accepted) + len(skipped)
    return accepted, BulkResult(matched, len(accepted), tuple(skipped), cursor)
