"""A warning about tasks that take all places of a worker and do not end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq._logging import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.models import ReservedTask
    from sitq.protocols import Clock

__all__ = ["warn_of_saturation"]

_log: Final = Log(__name__)

_LOOK_EVERY: Final = 5.0
_WARN_EVERY: Final = 60.0
_MOST_SHOWN: Final = 10


async def warn_of_saturation(
    clock: Clock,
    takes_all_places: Callable[[], list[ReservedTask]],
    others_are_due: Callable[[], Awaitable[bool]],
) -> None:
    """Warn once a minute while the same attempts take all places and others are due; for ever.

    Args:
        clock: the worker's clock.
        takes_all_places: returns the tasks that run; none while a place is free.
        others_are_due: returns whether the store has tasks that could start now.
    """
    before: frozenset[tuple[str, int]] = frozenset()
    since = clock.monotonic()
    while True:
        await clock.sleep(_LOOK_EVERY)
        tasks = takes_all_places()
        now = clock.monotonic()
        same = frozenset((task.id, task.epoch) for task in tasks)
        if not same or same != before:
            before, since = same, now
        elif now - since >= _WARN_EVERY and await others_are_due():
            since = now
            _warn(tasks)


def _warn(tasks: list[ReservedTask]) -> None:
    shown = ", ".join(f"{task.id} ({task.function})" for task in tasks[:_MOST_SHOWN])
    more = len(tasks) - _MOST_SHOWN
    _log.warning(
        "no task has ended for a minute, all %d places are taken, and others are due: %s%s; "
        "a function that does not end, or that waits for a task of the same worker, keeps its "
        "place: give it a timeout, or raise max_concurrency",
        len(tasks),
        shown,
        f" and {more} more" if more > 0 else "",
        extra={"task_ids": [task.id for task in tasks]},
    )
