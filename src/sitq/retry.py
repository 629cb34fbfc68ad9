"""Decide whether a failed task is tried again, and after how long; uses no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sitq._module_names import is_class_named
from sitq._signal_exits import leaves_of
from sitq._validation import MAX_SECONDS, check_seconds

if TYPE_CHECKING:
    from collections.abc import Collection

    from sitq.models import RetryPolicy

__all__ = ["Decision", "Fail", "Retry", "backoff", "decide"]

# A subclass may have attributes of its own by these names, or a metaclass that does.
_MRO: Final = type.__dict__["__mro__"]
_MEMBERS: Final = BaseExceptionGroup.__dict__["exceptions"]


class Retry(Exception):  # noqa: N818 - a request, no error
    """Raised by a task to request another attempt, whatever its policy's ``retry_on`` says.

    It fails the task only when the policy's attempts are spent. A task with no policy, of its own
    or of the worker, has ``RetryPolicy()`` here: 3 attempts. It may come in an exception group, as
    a task group raises it, if nothing else is in the group; the longest delay counts. A subclass
    may have an ``__init__`` of its own, and set ``delay``.

    Args:
        delay: seconds until the next attempt (0 to 10 years); ``None``: as the policy says.

    Raises:
        ValidationError: the delay is out of its range or not a number. In a task this is an
            exception like any other: the policy says whether the task is tried again.
    """

    delay: float | None = None

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None:
            delay = check_seconds("Retry: delay", delay)
        super().__init__("another attempt was asked for")
        self.delay = delay


class Fail(Exception):  # noqa: N818 - a request, as `Retry` is
    """Raised by a task to fail now, whatever its policy or the worker's says.

    It may come in an exception group: the task fails, whatever else is in the group.

    Args:
        reason: what the result's ``error`` says after the name of the class.
    """

    def __init__(self, reason: str = "the task asked to fail") -> None:
        super().__init__(reason)


class Decision(NamedTuple):
    """The decision about a task that raised.

    Args:
        again: whether another attempt follows, if the policy has attempts left.
        asked: whether the task itself asked for it, by `Retry`.
        delay: the seconds that it asked for; ``None``: as the policy says.
    """

    again: bool
    asked: bool = False
    delay: float | None = None


def decide(policy: RetryPolicy | None, error: BaseException) -> Decision:
    """Decide whether an exception is worth another attempt; attempts are not counted here.

    1. With a `Fail`, alone or in an exception group, there is none.
    2. With a `Retry`, alone or in a group with nothing else, there is one.
    3. Without a policy there is none.
    4. If the class or a base of the exception, or of one in the group, is listed in
       ``no_retry_on``, there is none. `Retry` is not looked up.
    5. If the class or a base of it is listed in ``retry_on``, there is one.
    6. For a group there is one if its own class is listed, or if each exception in it would have
       one.

    No code of the error's classes runs, but for the attribute ``delay`` of a `Retry`.

    Args:
        policy: the retry policy; ``None``: there is none.
        error: what the task raised.
    """
    leaves = list(leaves_of(error))
    if any(issubclass(type(leaf), Fail) for leaf in leaves):
        return Decision(again=False)
    if all(issubclass(type(leaf), Retry) for leaf in leaves):
        delays = [delay for leaf in leaves if (delay := _delay_of(leaf)) is not None]
        return Decision(again=True, asked=True, delay=max(delays, default=None))
    if policy is None:
        return Decision(again=False)
    refused = frozenset(map(str, policy.no_retry_on))
    if refused and _is_listed(refused, error, every=False):
        return Decision(again=False)
    return Decision(again=_is_listed(frozenset(map(str, policy.retry_on)), error, every=True))


def _delay_of(error: BaseException) -> float | None:
    """Return the delay that a `Retry` asks for; ``None`` if it has no valid one."""
    try:
        delay: Any = getattr(error, "delay", None)
    except Exception:  # noqa: BLE001 - a subclass may have a property of its own
        return None
    if type(delay) not in {int, float} or not 0 <= delay <= MAX_SECONDS:
        return None
    return float(delay)


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


def _is_listed(names: Collection[str], error: BaseException, *, every: bool) -> bool:
    """Return whether an exception is listed.

    A group is if its own class is, or else if any or ``every`` exception in it is. A `Retry` in a
    group does not count.
    """
    waiting = [error]
    while waiting:
        each = waiting.pop()
        kind = type(each)
        is_group = issubclass(kind, BaseExceptionGroup)
        if issubclass(kind, Retry) and not is_group:
            continue
        is_named = _names(_group_classes(kind) if is_group else _MRO.__get__(kind), names)
        if is_group and not is_named:
            waiting += _MEMBERS.__get__(each)
        elif is_named is not every:
            return is_named
    return every


def _group_classes(kind: type[BaseException]) -> list[type]:
    # A group is an Exception if its leaves are: only its own classes can be meant.
    return [base for base in _MRO.__get__(kind) if issubclass(base, BaseExceptionGroup)]


def _names(classes: Collection[type], names: Collection[str]) -> bool:
    if any(f"{each.__module__}.{each.__qualname__}" in names for each in classes):
        return True
    return any(is_class_named(name, each) for each in classes for name in names)
