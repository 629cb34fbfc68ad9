"""What takes the place of an outcome that the store refuses for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq.models import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sitq.errors import BackendValueError

__all__ = ["replaced"]

_log: Final = Log(__name__)

_ERROR: Final = "BackendValueError: the store cannot keep the error of this attempt"
_VALUE: Final = "BackendValueError: the store cannot keep the result of this attempt"


def replaced(outcome: Outcome, error: BackendValueError) -> Outcome | None:
    """Return an outcome that every store can keep: plain text, no value and no traceback.

    A retry stays one. If that is refused as well, a failure replaces it, and ``None`` that one.

    Args:
        outcome: what the store has refused.
        error: what the store said; it goes into the log.
    """
    if outcome.kind is OutcomeKind.FAILURE and outcome.error in {_ERROR, _VALUE}:
        return None
    _log.error(
        "task %s: the store cannot keep the %s of epoch %d, so a plain one takes its place: %s",
        outcome.task_id,
        outcome.kind,
        outcome.epoch,
        error,
    )
    if outcome.kind is OutcomeKind.RETRY and outcome.error != _ERROR:
        return Outcome.retry(outcome.lease, outcome.delay, _ERROR)
    return Outcome.failure(outcome.lease, _VALUE if outcome.kind is OutcomeKind.SUCCESS else _ERROR)
