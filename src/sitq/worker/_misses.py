"""Tasks that this worker cannot start, though another version of the program may.

Their function is unknown here, or takes no such arguments here: a deploy is under way, or one was
forgotten. They are put back with a growing delay, and failed at last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq._names import shown
from sitq.models import Outcome, OutcomeKind
from sitq.worker._errors import error_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.errors import ValidationError
    from sitq.models import ReservedTask

__all__ = ["mismatched", "missed"]

_log: Final = Log(__name__)

_MAX_MISSES: Final = 10
_LONGEST_DELAY: Final = 60.0
_NO_WORKER: Final = f"in {_MAX_MISSES} tries the task met no worker that"


def missed(task: ReservedTask, similar: Sequence[str] = ()) -> Outcome:
    """Return what becomes of a task whose function this worker does not know.

    Args:
        task: what was reserved.
        similar: names that the worker knows, and that may be meant.
    """
    name = shown(task.function)
    known = " and ".join(map(shown, similar))
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
    )
    if outcome.kind is OutcomeKind.FAILURE:
        _log.error("task %s failed: %s knows %s; %s%s", task.id, _NO_WORKER, name, hint, advice)
    return outcome


def mismatched(task: ReservedTask, error: ValidationError) -> Outcome:
    """Return what becomes of a task whose arguments do not fit this worker's function.

    Args:
        task: what was reserved.
        error: what does not fit; its text names parameters, fields and types, never values.
    """
    advice = "run the version of the program that stored it, or one that takes these arguments"
    reason = f"{shown(task.function)} takes no such arguments here: {shown(str(error), 1000)}"
    return _put_back(
        task, f"{reason}; {advice}", f"{error_text(error)}; {_NO_WORKER} takes them: {advice}"
    )


def _put_back(task: ReservedTask, reason: str, error: str) -> Outcome:
    """Put a task back for a while, or fail it with an error after the last try."""
    if task.misses + 1 >= _MAX_MISSES:
        return Outcome.failure(task.lease, error)
    delay = min(2.0**task.misses, _LONGEST_DELAY)
    _log.warning("task %s is put back for %g s: %s", task.id, delay, reason)
    return Outcome.miss(task.lease, delay)
