"""When a task that raised is tried again, and after how long; no clock inside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sitq._modules import is_class_named
from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from sitq.models import RetryPolicy

__all__ = ["Retry", "backoff", "wants_retry"]

_LONGEST: Final = 10 * 365 * 86400.0


class Retry(Exception):  # noqa: N818 - a request, no error
    """Raised by a task to ask for another attempt, whatever its policy's ``retry_on`` says.

    It fails the task only when the policy's attempts are spent. A task with no policy, of its own
    or of the worker, has ``RetryPolicy()`` here: 3 attempts.

    Args:
        delay: seconds until the next attempt (0 to 10 years); ``None``: as the policy says.

    Raises:
        ValidationError: the delay is out of its range, or no number.
    """

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None and (
            isinstance(delay, bool)
            or not isinstance(delay, int | float)
            or not 0 <= delay <= _LONGEST
        ):
            raise ValidationError(
                f"Retry: delay must be seconds from 0 to {_LONGEST:.0f} "
                f"(got {type(delay).__name__})"
            )
        super().__init__("another attempt was asked for")
        self.delay = delay


def backoff(policy: RetryPolicy, attempt: int, draw: float) -> float:
    """Return the seconds to wait between an attempt that failed and the next.

    Args:
        policy: the retry policy.
        attempt: the attempt that failed; 1 for the first.
        draw: a random number, from 0 up to but not including 1.
    """
    if not policy.delay:
        return 0.0
    try:
        wait = policy.delay * math.pow(policy.factor, max(attempt, 1) - 1)
    except OverflowError:
        wait = math.inf
    return min(wait, policy.max_delay) * (1 - policy.jitter * draw)


def wants_retry(policy: RetryPolicy, attempt: int, error: BaseException) -> bool:
    """Tell if a task is to be tried again.

    1. Not once ``attempt`` has reached the policy's ``max_attempts``.
    2. `Retry` always is.
    3. An exception is if its class or a base of it is listed in ``retry_on``.
    4. An exception group is if its own class is listed, or if every exception in it would be.

    Args:
        policy: the retry policy.
        attempt: the attempt that failed; 1 for the first.
        error: what the task raised.
    """
    return attempt < policy.max_attempts and _listed(frozenset(map(str, policy.retry_on)), error)


def _listed(names: Collection[str], error: BaseException) -> bool:
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            # A group is an Exception if its leaves are: only its own classes can be meant.
            groups = [base for base in type(each).__mro__ if issubclass(base, BaseExceptionGroup)]
            if not _names(groups, names):
                waiting += each.exceptions
        elif not isinstance(each, Retry) and not _names(type(each).__mro__, names):
            return False
    return True


def _names(classes: Collection[type], names: Collection[str]) -> bool:
    if any(f"{each.__module__}.{each.__qualname__}" in names for each in classes):
        return True
    return any(is_class_named(name, each) for each in classes for name in names)
