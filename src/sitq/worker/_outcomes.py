"""Make the outcome of an attempt that raised, or that this worker could not start.

A worker cannot start a task whose function is unknown here or takes no such arguments here. Usually
a deploy is under way, or one was forgotten. Such a task is put back with a growing delay, and fails
after the last try.
"""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from traceback import TracebackException
from typing import TYPE_CHECKING, Final

from sitq._logging import Log, fields_of
from sitq._signal_exits import find_signal_exit
from sitq.models import Outcome, OutcomeKind, RetryPolicy
from sitq.payload.names import one_line
from sitq.retry import Decision, backoff, decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.errors import ValidationError
    from sitq.models import Lease, ReservedTask

__all__ = [
    "delay_text",
    "error_text",
    "log_end",
    "log_success",
    "logs_success",
    "outcome_of_error",
    "outcome_of_mismatch",
    "outcome_of_unknown_function",
]

_log: Final = Log(__name__)

_MAX_ERROR: Final = 4_000
_MAX_TRACEBACK: Final = 64_000
_OURS: Final = str(Path(__file__).resolve().parents[1]) + os.sep


def outcome_of_error(
    task: ReservedTask, lease: Lease, error: BaseException, default: RetryPolicy | None
) -> Outcome:
    """Return the outcome of an attempt that raised: another attempt, or failure."""
    text, trace = error_text(error), _traceback_text(error)
    policy, attempt = task.retry or default, task.attempt
    try:
        decision = decide(policy, error)
    except BaseException as inner:  # of a metaclass of the user's, say
        if find_signal_exit(inner) is not None:
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


def logs_success() -> bool:
    """Return whether a successful end is logged."""
    return _log.is_on(logging.INFO)


def log_success(task: ReservedTask, worker_id: str, duration: float) -> None:
    """Log a successful end at INFO, with the seconds that it took."""
    names = (task.id, task.attempt, task.function)
    extra = fields_of(worker_id, task, duration=duration)
    _log.info("task %s: attempt %d of %s succeeded in %.3f s", *names, duration, extra=extra)


def log_end(
    task: ReservedTask,
    outcome: Outcome,
    error: BaseException | None,
    worker_id: str,
    duration: float,
) -> None:
    """Log an unsuccessful end: a failure at ERROR, with the error and its traceback.

    A retry is a WARNING, anything else an INFO. The message leaves out the error's own text, which
    may hold arguments. The traceback has it.
    """
    cause = outcome.error.partition(":")[0] if outcome.error else None
    kind = f" ({cause})" if cause else ""
    names = (task.id, task.attempt, task.function)
    extra = fields_of(worker_id, task, duration=duration)
    if outcome.kind is OutcomeKind.FAILURE:
        extra["error_type"] = cause
        _log.error("task %s: attempt %d of %s failed%s", *names, kind, error=error, extra=extra)
    elif outcome.kind is OutcomeKind.RETRY:
        extra |= {"error_type": cause, "delay": outcome.delay}
        message = "task %s: attempt %d of %s failed%s; retrying %s"
        _log.warning(message, *names, kind, delay_text(outcome.delay), extra=extra)
    elif outcome.kind is OutcomeKind.CANCELLED:
        _log.info("task %s: attempt %d of %s was cancelled", *names, extra=extra)
    elif outcome.kind is OutcomeKind.RELEASE:
        _log.info(
            "task %s: attempt %d of %s was interrupted and is handed back", *names, extra=extra
        )


def delay_text(seconds: float) -> str:
    """Return a delay in words."""
    rounded = round(seconds, 3)
    return f"in {rounded:.10g} s" if rounded else "at once"


_MAX_MISSES: Final = 10
_LONGEST_DELAY: Final = 60.0
_NO_WORKER: Final = f"in {_MAX_MISSES} tries the task met no worker that"


def outcome_of_unknown_function(
    task: ReservedTask, similar: Sequence[str] = (), worker_id: str = ""
) -> Outcome:
    """Return the outcome of a task whose function is unknown here; similar names may be known."""
    name = one_line(task.function)
    known = " and ".join(map(one_line, similar))
    verb = "is" if len(similar) == 1 else "are"
    hint = f"{known} {verb} known here; the task wants {name}; " if similar else ""
    advice = (
        "give the worker its module or the function (Worker(tasks=[...])), "
        "mark it with @task in a module that this process imports, "
        "or give a function that was moved its old name (@task(aliases=(...)))"
    )
    outcome = _put_back(
        task,
        f"this worker does not know {name}; {hint}{advice}",
        f"UnknownFunctionError: {_NO_WORKER} knows {name}: {hint}{advice}",
        worker_id,
    )
    if outcome.kind is OutcomeKind.FAILURE:
        extra = fields_of(worker_id, task, function=name, error_type="UnknownFunctionError")
        message = "task %s failed: %s knows %s; %s%s"
        _log.error(message, task.id, _NO_WORKER, name, hint, advice, extra=extra)
    return outcome


def outcome_of_mismatch(task: ReservedTask, error: ValidationError, worker_id: str = "") -> Outcome:
    """Return the outcome of a task whose arguments do not fit this worker's function.

    The text of the error names parameters, fields and types, never values.
    """
    advice = "run the version of the program that stored it, or one that takes these arguments"
    reason = f"{one_line(task.function)} takes no such arguments here: {one_line(str(error), 1000)}"
    text = f"{error_text(error)}; {_NO_WORKER} takes them: {advice}"
    return _put_back(task, f"{reason}; {advice}", text, worker_id)


def _put_back(task: ReservedTask, reason: str, error: str, worker_id: str) -> Outcome:
    """Return the outcome that puts a task back for a while, or fails it after the last try."""
    if task.unknown_function_count + 1 >= _MAX_MISSES:
        return Outcome.failure(task.lease, error)
    delay = min(2.0**task.unknown_function_count, _LONGEST_DELAY)
    extra = fields_of(worker_id, task, function=one_line(task.function), delay=delay)
    _log.warning("task %s is put back for %g s: %s", task.id, delay, reason, extra=extra)
    return Outcome.unknown_function(task.lease, delay)


def error_text(error: BaseException) -> str:
    """Return ``"ValueError: text"``, whatever the error's own ``str()`` does."""
    name = _name_of(type(error))
    try:
        text = str.__str__(str(error))  # a subclass may format itself
    except BaseException as inner:  # noqa: BLE001 - the error's own __str__ is user code
        _raise_exit(inner)
        text = f"<str() of it raised {_name_of(type(inner))}>"
    return _clean(f"{name}: {text}" if text else name, _MAX_ERROR)


def _name_of(kind: type[BaseException]) -> str:
    try:
        name = str.__str__(kind.__qualname__)
        if kind.__module__ in {"builtins", "__main__", "__mp_main__"}:
            return name
        name = f"{kind.__module__!s}.{name}"
    except BaseException as inner:  # noqa: BLE001 - a metaclass is user code too
        _raise_exit(inner)
        return "Exception"
    return name


def _traceback_text(error: BaseException) -> str | None:
    """Return the traceback without sitq's own frames, or ``None`` if it cannot be formatted."""
    try:
        trace = TracebackException.from_exception(error, compact=True)
        _only_theirs(trace)
        return _clean("".join(trace.format()), _MAX_TRACEBACK)
    except BaseException as inner:  # noqa: BLE001 - the error's own code may raise anything
        _raise_exit(inner)
        return None


def _raise_exit(inner: BaseException) -> None:
    """Raise an error again if a signal handler raised it, since it ends the process."""
    if find_signal_exit(inner) is not None:
        raise inner


def _only_theirs(trace: TracebackException) -> None:
    """Remove sitq's frames, also from causes, contexts and members of groups."""
    todo: list[TracebackException | None] = [trace]
    while todo:
        each = todo.pop()
        if each is None:
            continue
        each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_OURS)]
        todo += [each.__cause__, each.__context__, *(each.exceptions or ())]


def _clean(text: str, limit: int) -> str:
    """Return a text that every store can keep: valid UTF-8 of bounded length."""
    if len(text) > limit:
        half = limit // 2
        text = (
            f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
