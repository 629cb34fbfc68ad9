"""A typed task queue for asyncio and trio: one SQLite file, no broker.

A name is loaded at its first use: a module that only marks functions with `task` loads neither the
store nor the worker.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sitq.admin import Admin, SyncAdmin
    from sitq.administration import TaskFilter
    from sitq.backends.sqlite import SQLiteBackend
    from sitq.context import TaskContext, current_task
    from sitq.errors import (
        BackendBusyError,
        BackendConnectionError,
        BackendError,
        BackendFormatError,
        BackendFullError,
        BackendValueError,
        LeaseLostError,
        SerializationError,
        SitqError,
        TaskFailedError,
        TaskNotFoundError,
        UnknownOutcomeError,
        UsageError,
        ValidationError,
    )
    from sitq.extensions import Extension
    from sitq.ids import TaskId
    from sitq.models import Progress, ReservedTask, Result, RetryPolicy, Task, TaskInfo
    from sitq.payload.registry import Call, call, task
    from sitq.payload.serialization import MsgpackSerializer
    from sitq.protocols import (
        Backend,
        Clock,
        ResultSigningSerializer,
        Serializer,
        SigningSerializer,
    )
    from sitq.queue import (
        BoundQueue,
        QueueClient,
        SyncQueueClient,
        TaskQueue,
        TransactionQueue,
    )
    from sitq.resources import shared
    from sitq.retry import Fail, Retry
    from sitq.states import TaskStatus
    from sitq.sync import SyncBoundQueue, SyncTaskQueue
    from sitq.transactions import TransactionalBackend
    from sitq.urls import connect
    from sitq.worker import Worker

    __version__: str

__all__ = [
    "Admin",
    "Backend",
    "BackendBusyError",
    "BackendConnectionError",
    "BackendError",
    "BackendFormatError",
    "BackendFullError",
    "BackendValueError",
    "BoundQueue",
    "Call",
    "Clock",
    "Extension",
    "Fail",
    "LeaseLostError",
    "MsgpackSerializer",
    "Progress",
    "QueueClient",
    "ReservedTask",
    "Result",
    "ResultSigningSerializer",
    "Retry",
    "RetryPolicy",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "SigningSerializer",
    "SitqError",
    "SyncAdmin",
    "SyncBoundQueue",
    "SyncQueueClient",
    "SyncTaskQueue",
    "Task",
    "TaskContext",
    "TaskFailedError",
    "TaskFilter",
    "TaskId",
    "TaskInfo",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskStatus",
    "TransactionQueue",
    "TransactionalBackend",
    "UnknownOutcomeError",
    "UsageError",
    "ValidationError",
    "Worker",
    "call",
    "connect",
    "current_task",
    "shared",
    "task",
]

if not TYPE_CHECKING:
    _MODULES = {
        "admin": "Admin SyncAdmin",
        "administration": "TaskFilter",
        "backends.sqlite": "SQLiteBackend",
        "context": "TaskContext current_task",
        "queue": "BoundQueue QueueClient SyncQueueClient TaskQueue TransactionQueue",
        "errors": (
            "BackendBusyError BackendConnectionError BackendError BackendFormatError "
            "BackendFullError BackendValueError LeaseLostError SerializationError SitqError "
            "TaskFailedError TaskNotFoundError UnknownOutcomeError UsageError ValidationError"
        ),
        "extensions": "Extension",
        "ids": "TaskId",
        "models": "Progress ReservedTask Result RetryPolicy Task TaskInfo",
        "protocols": "Backend Clock ResultSigningSerializer Serializer SigningSerializer",
        "payload.registry": "Call call task",
        "resources": "shared",
        "retry": "Fail Retry",
        "payload.serialization": "MsgpackSerializer",
        "states": "TaskStatus",
        "sync": "SyncBoundQueue SyncTaskQueue",
        "transactions": "TransactionalBackend",
        "urls": "connect",
        "worker": "Worker",
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            globals()[name] = found = _import_module("sitq._version").version()
            return found
        for module, names in _MODULES.items():
            if name in names.split():
                globals()[name] = found = getattr(_import_module(f"sitq.{module}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
