"""Batches of tasks that differ only in ids and payloads; the common fields are kept once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, overload

from sitq.models import Task

if TYPE_CHECKING:
    from sitq.ids import TaskId

__all__ = ["TaskBatch", "concat", "copy_with", "has_keys", "ids_of", "split"]

# Models are frozen everywhere else.
_set: Final = object.__setattr__
_common: Final = attrgetter(*sorted(Task.model_fields.keys() - {"id", "payload"}))


class TaskBatch(Sequence[Task]):
    """Tasks like a pattern, each with an id and a payload of its own.

    A store that knows this type reads its three attributes. For other stores it is a sequence of
    tasks, made at the first access.

    Args:
        pattern: a checked task; its own id and payload do not count.
        ids: the tasks' ids.
        payloads: their payloads, bytes, in the same order.
    """

    __slots__ = ("_made", "ids", "pattern", "payloads")

    def __init__(self, pattern: Task, ids: list[TaskId[Any]], payloads: list[bytes]) -> None:
        self.pattern: Final = pattern
        self.ids: Final = ids
        self.payloads: Final = payloads
        self._made: list[Task] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self._tasks()[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks())

    def _tasks(self) -> list[Task]:
        if self._made is None:
            rows = zip(self.ids, self.payloads, strict=True)
            self._made = [copy_with(self.pattern, *row) for row in rows]
        return self._made


def copy_with(pattern: Task, task_id: TaskId[Any], payload: bytes) -> Task:
    """Return a copy with another id and payload, in a third of the time that pydantic takes."""
    made = Task.__new__(Task)
    fields = vars(pattern).copy()
    fields["id"] = task_id
    fields["payload"] = payload
    _set(made, "__dict__", fields)
    # Shared, since it is never changed in place: pydantic's copies have a set of their own.
    _set(made, "__pydantic_fields_set__", pattern.__pydantic_fields_set__)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def concat(batches: Sequence[Sequence[Task]]) -> Sequence[Task]:
    """Return all tasks of some batches, in order; as a `TaskBatch` if they share one pattern."""
    if len(batches) == 1 and isinstance(batches[0], TaskBatch):
        return batches[0]
    patterns = list(chain.from_iterable(map(_patterns_of, batches)))
    if not patterns:
        return []
    first, *others = patterns
    common = _common(first)
    # A store may leave ``unique_until`` out for tasks without a key, if it has its default.
    alike = first.unique_until == "end"
    if alike and all(other is first or _common(other) == common for other in others):
        ids = list(chain.from_iterable(map(ids_of, batches)))
        return TaskBatch(first, ids, list(chain.from_iterable(map(_payloads_of, batches))))
    return list(chain.from_iterable(batches))


def _patterns_of(tasks: Sequence[Task]) -> Sequence[Task]:
    return (tasks.pattern,) if isinstance(tasks, TaskBatch) else tasks


def _payloads_of(tasks: Sequence[Task]) -> list[bytes]:
    return tasks.payloads if isinstance(tasks, TaskBatch) else [task.payload for task in tasks]


def ids_of(tasks: Sequence[Task]) -> list[TaskId[Any]]:
    """Return the ids of tasks, in order."""
    return tasks.ids if isinstance(tasks, TaskBatch) else [task.id for task in tasks]


def has_keys(tasks: Sequence[Task]) -> bool:
    """Return whether any of the tasks has a unique key."""
    if isinstance(tasks, TaskBatch):
        return tasks.pattern.unique_key is not None
    return any(task.unique_key is not None for task in tasks)


def split(ids: Iterable[TaskId[Any]], batches: Sequence[Sequence[Task]]) -> list[list[TaskId[Any]]]:
    """Split the answers for all tasks of some batches, in order, into those of each batch."""
    left = iter(ids)
    return [list(islice(left, len(batch))) for batch in batches]
