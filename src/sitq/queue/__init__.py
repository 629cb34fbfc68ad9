"""`TaskQueue` and what belongs to it: options, enqueueing, and results."""

from __future__ import annotations

from sitq.queue._enqueueing import BoundQueue, TransactionQueue
from sitq.queue._queue import TaskQueue

__all__ = ["BoundQueue", "TaskQueue", "TransactionQueue"]
