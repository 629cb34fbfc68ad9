"""The statuses of a task and the transitions between them.

    enqueue ──▶ pending ──reserve──▶ in_progress ──succeed──▶ success
                 │  │ ▲                 │  │  └────fail─────▶ failed
                 │  │ └─retry, release, ┘  │
                 │  │   reclaim            └─cancel───────────▶ cancelled
                 │  └──expire──▶ expired
                 └──cancel────▶ cancelled

A task that waits for its eta or for a retry is ``pending`` with a later eta. One whose function the
worker does not know is released.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TRANSITIONS", "TaskStatus"]


class TaskStatus(StrEnum):
    """The status of a task."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Return whether the status is final: nothing can change the task any more."""
        return not TRANSITIONS[self]


TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = MappingProxyType(
    {status: frozenset[TaskStatus]() for status in TaskStatus}
    | {
        TaskStatus.PENDING: frozenset(
            {TaskStatus.IN_PROGRESS, TaskStatus.CANCELLED, TaskStatus.EXPIRED}
        ),
        TaskStatus.IN_PROGRESS: frozenset(
            {TaskStatus.PENDING, TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED}
        ),
    }
)
"""The statuses that may follow each status; none follows a final one."""
