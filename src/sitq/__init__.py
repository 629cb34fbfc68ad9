"""A typed task queue for asyncio and trio: one SQLite file, no broker."""

from sitq.backends.sqlite import SQLiteBackend
from sitq.context import current_task
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
from sitq.sync import SyncTaskQueue
from sitq.transactions import TransactionalBackend
from sitq.urls import connect
from sitq.worker import Worker

__all__ = [
    "Backend",
    "BackendBusyError",
    "BackendConnectionError",
    "BackendError",
    "BackendFormatError",
    "BackendFullError",
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
    "SyncTaskQueue",
    "Task",
    "TaskFailedError",
    "TaskId",
    "TaskInfo",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskStatus",
    "TransactionalBackend",
    "UsageError",
    "ValidationError",
    "Worker",
    "call",
    "connect",
    "current_task",
    "task",
]
