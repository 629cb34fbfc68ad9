"""`TaskQueue` and what belongs to it: options, enqueueing, and results."""

from __future__ import annotations

from sitq.queue._enqueueing import BoundQueue, TransactionQueue
from sitq.queue._queue import TaskQueue
from sitq.queue._task_clients import QueueClient, SyncQueueClient

__all__ = ["BoundQueue", "QueueClient", "SyncQueueClient", "TaskQueue", "TransactionQueue"]
