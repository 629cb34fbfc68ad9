"""The queue: store tasks, and read back what became of them."""

from __future__ import annotations

from sitq.queue._enqueueing import BoundQueue, EnqueueMethods, Producer, TransactionQueue
from sitq.queue._queue import TaskQueue

__all__ = ["BoundQueue", "EnqueueMethods", "Producer", "TaskQueue", "TransactionQueue"]
