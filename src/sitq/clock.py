"""The system's clock behind the ``Clock`` protocol."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import anyio

from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.protocols import Clock

__all__ = ["SystemClock", "checked_clock", "with_timeout"]

T = TypeVar("T")


class SystemClock:
    """Wall time in UTC, the system's monotonic time, and real waiting."""

    __slots__ = ()

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait; a cancellation ends it at once."""
        await anyio.sleep(seconds)


def checked_clock(clock: Clock | None) -> Clock:
    """Return the clock that a backend was given; the system's for ``None``.

    Raises:
        ValidationError: it is not a clock.
    """
    if clock is None:
        return SystemClock()
    methods = (getattr(clock, name, None) for name in ("now", "monotonic", "sleep"))
    if isinstance(clock, type) or not all(map(callable, methods)):
        kind = type(clock).__name__
        message = f"clock: give an object with now(), monotonic() and sleep() (got {kind})"
        raise ValidationError(message)
    return clock


async def with_timeout(
    clock: Clock, seconds: float | None, work: Callable[[], Awaitable[T]]
) -> T | None:
    """Return what ``work`` returns; ``None`` if it is cancelled after ``seconds`` of a clock.

    ``None`` seconds are no limit.
    """
    if seconds is None:
        return await work()
    if type(clock).sleep is SystemClock.sleep:
        # A deadline of the loop's own costs far less than a task that sleeps.
        with anyio.move_on_after(seconds):
            return await work()
        return None
    result = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_limit, clock, seconds, group.cancel_scope)
            result = await work()
            group.cancel_scope.cancel()
    except ExceptionGroup as errors:
        if len(errors.exceptions) > 1:
            raise
        raise errors.exceptions[0] from None
    return result


async def _limit(clock: Clock, seconds: float, scope: anyio.CancelScope) -> None:
    await clock.sleep(seconds)
    scope.cancel()
