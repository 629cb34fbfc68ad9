"""The protocol of stores that can be administered, and the models that it exchanges.

It is optional: a store that has the methods of `AdminBackend` besides those of `Backend` can be
given to `sitq.Admin`, obeys a pause, and knows its workers.
"""

from __future__ import annotations

from sitq.administration._models import (
    KEPT_FAILURES,
    BulkChange,
    BulkResult,
    Count,
    FailedAttempt,
    Overview,
    QueueInfo,
    QueuePause,
    SkippedTask,
    StatusFilter,
    TaskChange,
    TaskFilter,
    TaskPage,
    UnknownFunction,
    WorkerInfo,
    WorkerOrders,
    WorkerReport,
    WorkerState,
)
from sitq.administration._protocols import AdminBackend, WorkerKeeper

__all__ = [
    "KEPT_FAILURES",
    "AdminBackend",
    "BulkChange",
    "BulkResult",
    "Count",
    "FailedAttempt",
    "Overview",
    "QueueInfo",
    "QueuePause",
    "SkippedTask",
    "StatusFilter",
    "TaskChange",
    "TaskFilter",
    "TaskPage",
    "UnknownFunction",
    "WorkerInfo",
    "WorkerKeeper",
    "WorkerOrders",
    "WorkerReport",
    "WorkerState",
]
