"""`TaskQueue` and what belongs to it: options, enqueueing, and results."""

from __future__ import annotations

from sitq.queue._enqueueing import BoundQueue, EnqueueMethods, Producer, TransactionQueue
from sitq.queue._queue import TaskQueue

__all__ = ["BoundQueue", "EnqueueMethods", "Producer", "TaskQueue", "TransactionQueue"]
