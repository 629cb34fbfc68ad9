"""How an attempt that raised ends: the outcome, and the log line about it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq.models import Outcome, RetryPolicy
from sitq.retry import Retry, backoff, wants_retry
from sitq.worker._errors import error_text, traceback_text

if TYPE_CHECKING:
    from sitq.models import Lease, ReservedTask

__all__ = ["log_end", "outcome_of_error", "outcome_of_refusal"]

_log: Final = Log(__name__)


def outcome_of_error(
    task: ReservedTask, lease: Lease, error: BaseException, default: RetryPolicy | None
) -> Outcome:
    """Return the outcome of an attempt that raised: another attempt, or failure.

    Args:
        task: what was attempted.
        lease: its lease.
        error: what the function raised.
        default: the retry policy of tasks that have none of their own.
    """
    text, trace = error_text(error), traceback_text(error)
    policy, attempt = task.retry or default, task.attempt
    if isinstance(error, Retry):
        policy = policy or RetryPolicy()
    elif policy is None or not wants_retry(policy, attempt, error):
        return Outcome.failure(lease, text, trace)
    if attempt >= policy.max_attempts:
        return Outcome.failure(lease, text, trace)
    delay = error.delay if isinstance(error, Retry) else None
    if delay is None:
        delay = backoff(policy, attempt, random.random())
    return Outcome.retry(lease, delay, text, trace)


def outcome_of_refusal(lease: Lease, error: BaseException) -> Outcome:
    """Return the failure of a task whose arguments or result sitq itself refused.

    Args:
        lease: the lease of the attempt.
        error: what says why; its traceback would show none of the task's own code.
    """
    return Outcome.failure(lease, error_text(error))


def log_end(task: ReservedTask, outcome: Outcome) -> None:
    """Log an end that is no success, without the error's text: that may hold arguments.

    It is no warning: the worker does what it is for, and the result tells who asked.
    """
    _log.info(
        "task %s: attempt %d of %s ended as %s%s",
        task.id,
        task.attempt,
        task.function,
        outcome.kind,
        f" ({outcome.error.partition(':')[0]})" if outcome.error else "",
    )
