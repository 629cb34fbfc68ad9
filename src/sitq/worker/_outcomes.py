"""How an attempt that raised ends: the outcome, and the log line about it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from sitq._exceptions import exit_of
from sitq._logging import Log
from sitq.models import Outcome, OutcomeKind, RetryPolicy
from sitq.retry import Decision, backoff, decide
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
    try:
        decision = decide(policy, error)
    except BaseException as inner:  # of a metaclass of the user's, say
        if exit_of(inner) is not None:
            raise
        decision = Decision(again=False)
    if decision.asked:
        policy = policy or RetryPolicy()
    if not decision.again or policy is None or attempt >= policy.max_attempts:
        return Outcome.failure(lease, text, trace)
    delay = decision.delay
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


def log_end(
    task: ReservedTask, outcome: Outcome, error: BaseException | None, worker_id: str
) -> None:
    """Log an end that is no success: a failure at ERROR, with the error and its traceback.

    A retry is a WARNING, anything else an INFO. The message has no text of the error's: that may
    hold arguments, and who reads tracebacks finds it there.

    Args:
        task: what was attempted.
        outcome: how the attempt ended.
        error: what the function raised, if it did.
        worker_id: the worker that made the attempt.
    """
    kind = f" ({outcome.error.partition(':')[0]})" if outcome.error else ""
    names = (task.id, task.attempt, task.function)
    extra = {
        "task_id": task.id,
        "function": task.function,
        "queue": task.queue,
        "attempt": task.attempt,
        "worker_id": worker_id,
    }
    if outcome.kind is OutcomeKind.FAILURE:
        _log.error("task %s: attempt %d of %s failed%s", *names, kind, error=error, extra=extra)
    elif outcome.kind is OutcomeKind.RETRY:
        message = "task %s: attempt %d of %s failed%s; retrying in %.3g s"
        _log.warning(message, *names, kind, outcome.delay, extra=extra)
    else:
        _log.info("task %s: attempt %d of %s ended: %s", *names, outcome.kind, extra=extra)
