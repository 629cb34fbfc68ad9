"""Tasks and outcomes for tests of the store."""

from __future__ import annotations

from typing import Any

from sitq.ids import new_task_id
from sitq.models import Lease, Outcome, OutcomeKind, Task

__all__ = ["make_outcome", "new_task"]


def new_task(**options: Any) -> Task:
    """A task with a fresh id."""
    return Task(**{"id": new_task_id(), "function": "tests:nothing", "payload": b"\x90"} | options)


def make_outcome(kind: OutcomeKind, lease: Lease) -> Outcome:
    """An outcome of any kind, with all that its kind carries."""
    match kind:
        case OutcomeKind.SUCCESS:
            return Outcome.success(lease, b"value")
        case OutcomeKind.FAILURE:
            return Outcome.failure(lease, "ValueError: no", "the frames")
        case OutcomeKind.RETRY:
            return Outcome.retry(lease, 0.0, "ValueError: again", "the frames")
        case OutcomeKind.MISS:
            return Outcome.miss(lease, 0.0)
        case OutcomeKind.RELEASE:
            return Outcome.release(lease)
        case OutcomeKind.CANCELLED:
            return Outcome.cancelled(lease)
