"""A typed task queue for asyncio and trio: one SQLite file, no broker."""

from sitq.backends.sqlite import SQLiteBackend
from sitq.context import TaskContext, current_task
from sitq.enqueueing import BoundQueue
from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    LeaseLostError,
    SerializationError,
    SitqError,
    TaskFailedError,
    TaskNotFoundError,
    UsageError,
    ValidationError,
)
from sitq.ids import TaskId
from sitq.models import Progress, ReservedTask, Result, RetryPolicy, Task, TaskInfo
from sitq.protocols import Backend, Clock, Serializer, SigningSerializer
from sitq.queue import TaskQueue
from sitq.registry import Call, call, task
from sitq.retry import Retry
from sitq.serialization import MsgpackSerializer
from sitq.states import TaskStatus
from sitq.sync import SyncBoundQueue, SyncTaskQueue
from sitq.worker import Worker

__all__ = [
    "Backend",
    "BackendBusyError",
    "BackendConnectionError",
    "BackendError",
    "BackendFormatError",
    "BackendFullError",
    "BoundQueue",
    "Call",
    "Clock",
    "LeaseLostError",
    "MsgpackSerializer",
    "Progress",
    "ReservedTask",
    "Result",
    "Retry",
    "RetryPolicy",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SigningSerializer",
    "SitqError",
    "SyncBoundQueue",
    "SyncTaskQueue",
    "Task",
    "TaskContext",
    "TaskFailedError",
    "TaskId",
    "TaskInfo",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskStatus",
    "UsageError",
    "ValidationError",
    "Worker",
    "call",
    "current_task",
    "task",
]
