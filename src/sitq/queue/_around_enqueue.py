"""Store tasks through the `Extension.around_enqueue` of extensions, and check what these do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sitq.errors import UsageError, ValidationError
from sitq.models import Task
from sitq.queue._options import check_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq.extensions import Extension
    from sitq.ids import TaskId

    Store = Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]]

__all__ = ["through_extensions"]


def through_extensions(extensions: Sequence[Extension], store: Store) -> Store:
    """Return a function that stores tasks through extensions, the first one outermost."""
    for extension in reversed(extensions):
        store = partial(_through, extension, store)
    return store


async def _through(extension: Extension, store: Store, tasks: Sequence[Task]) -> list[TaskId[Any]]:
    name = f"{type(extension).__qualname__}.around_enqueue"
    is_called = False
    stored: list[TaskId[Any]] | None = None

    async def call_next(changed: Sequence[Task]) -> list[TaskId[Any]]:
        nonlocal is_called, stored
        if is_called:
            raise UsageError(f"{name}: call_next was called before; it stores the tasks once")
        is_called = True
        stored = await store(_checked(name, tasks, changed))
        return stored

    returned: object = await extension.around_enqueue(tasks, call_next)
    if not is_called:
        hint = "await call_next(tasks), or raise an error to refuse the tasks"
        raise UsageError(f"{name} has not called call_next, so nothing was stored; {hint}")
    if stored is None or returned != stored:
        kind = type(returned).__name__
        raise UsageError(f"{name} has to return what call_next returned (got {kind})")
    return stored


def _checked(name: str, tasks: Sequence[Task], changed: object) -> Sequence[Task]:
    """Return the tasks with the headers that an extension gave them."""
    if changed is tasks:
        return tasks
    given: list[Any] = list(changed) if isinstance(changed, list | tuple) else []
    if len(given) != len(tasks):
        hint = f"give call_next a list of the same {len(tasks):,} tasks, in the same order"
        raise ValidationError(f"{name}: {hint} (got {type(changed).__name__})")
    return [_with_headers(name, *pair) for pair in zip(tasks, given, strict=True)]


def _with_headers(name: str, task: Task, changed: object) -> Task:
    if changed is task:
        return task
    if type(changed) is not Task:
        raise ValidationError(f"{name}: give tasks (got {type(changed).__name__})")
    old, new = vars(task), vars(changed)
    differing = [field for field in old if field != "headers" and new.get(field) != old[field]]
    if differing:
        hint = "an extension may change the headers of a task and nothing else"
        raise ValidationError(f"{name}: {', '.join(differing)} of a task differ: {hint}")
    return task.model_copy(update={"headers": check_headers(f"{name}: headers", changed.headers)})
