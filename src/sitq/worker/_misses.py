"""Tasks whose function a worker does not know: left to others for a while, and failed at last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq._names import shown
from sitq.models import Outcome

if TYPE_CHECKING:
    from sitq.models import ReservedTask

__all__ = ["missed"]

_log: Final = Log(__name__)

_MAX_MISSES: Final = 10
_LONGEST_DELAY: Final = 60.0


def missed(task: ReservedTask) -> Outcome:
    """What becomes of a task whose function this worker does not know."""
    advice = (
        "give the worker its module or the function (Worker(tasks=[...])), "
        "or mark it with @task in a module that this process imports"
    )
    name = shown(task.function)
    if task.misses + 1 >= _MAX_MISSES:
        _log.warning("task %s failed: no worker knows %s; %s", task.id, name, advice)
        text = f"UnknownFunctionError: no worker knows {name}: {advice}"
        return Outcome.failure(task.lease, text)
    delay = min(2.0**task.misses, _LONGEST_DELAY)
    _log.warning(
        "task %s: this worker does not know %s; put back for %g s; %s",
        task.id,
        name,
        delay,
        advice,
    )
    return Outcome.miss(task.lease, delay)
