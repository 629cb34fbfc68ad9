"""Bound how many tasks a worker reserves ahead of free places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sitq.protocols import Clock

__all__ = ["MAX_PREFETCH", "PREFETCH_TIMEOUT", "PrefetchLimit"]

# At most so many tasks are reserved ahead, and no more than start within so many seconds.
MAX_PREFETCH: Final = 500
_PREFETCH_SECONDS: Final = 0.02
# A task that still waits after so many seconds is released.
PREFETCH_TIMEOUT: Final = 0.25
# After a task whose worker was lost, a worker reserves none ahead for so many seconds.
_PAUSE: Final = 1.0
# The weight of the last duration in the running mean.
_WEIGHT: Final = 0.1


class PrefetchLimit:
    """Estimates how many tasks start within a moment, from how long attempts take.

    Args:
        clock: the worker's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The running mean of the seconds that an attempt takes; `None` before the first has ended.
        self._mean: float | None = None
        self._paused_until = float("-inf")

    @property
    def is_paused(self) -> bool:
        """True while no task is reserved ahead because one may end the process."""
        return self._clock.monotonic() < self._paused_until

    def limit(self, places: int) -> int:
        """Return how many tasks may be reserved ahead of so many places."""
        if self._mean is None or self.is_paused:
            return 0
        return min(MAX_PREFETCH, int(_PREFETCH_SECONDS * places / max(self._mean, 1e-6)))

    def note(self, seconds: float) -> None:
        """Note how long an attempt took."""
        mean = seconds if self._mean is None else self._mean
        self._mean = max(mean + (seconds - mean) * _WEIGHT, 0.0)

    def note_timeout(self) -> None:
        """Note that a task has waited for too long: the running ones take longer than the mean."""
        self._mean = max(self._mean or 0.0, PREFETCH_TIMEOUT)

    def pause(self) -> None:
        """Reserve none ahead for a while: one of the tasks may end the process."""
        self._paused_until = self._clock.monotonic() + _PAUSE
