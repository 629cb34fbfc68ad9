"""Types of the public API, for mypy and pyright to read; never run.

What must hold is an ``assert_type``; what must be refused is a line with an ignore that is
reported when it is not needed. The rules of pyright are named beside those of mypy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import aiosqlite
from pydantic import BaseModel
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from sitq import (
    Backend,
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    Call,
    Clock,
    Fail,
    LeaseLostError,
    MsgpackSerializer,
    Progress,
    QueueClient,
    ReservedTask,
    Result,
    Retry,
    RetryPolicy,
    SerializationError,
    Serializer,
    SitqError,
    SQLiteBackend,
    SyncQueueClient,
    SyncTaskQueue,
    Task,
    TaskFailedError,
    TaskId,
    TaskInfo,
    TaskNotFoundError,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    __version__,
    call,
    current_task,
    task,
)
from sitq.backends.memory import MemoryBackend
from sitq.clock import SystemClock
from sitq.protocols import BlockingBackend
from sitq.testing import FakeClock, FaultyBackend
from sitq.transactions import TransactionalBackend


class Order(BaseModel):
    """What a task may take and return."""

    number: int


async def add(a: int, b: int = 0) -> int:
    """An async function."""
    return a + b


def join(a: str, *, sep: str = " ") -> str:
    """A plain function."""
    return a + sep


async def place(order: Order) -> Order | None:
    """A function of models."""
    return order


def log(text: str) -> None:
    """A function that returns nothing."""


@task
async def bare(a: int) -> bytes:
    """A marked function stays what it was."""
    return bytes(a)


@task(store_result=False)
async def unstored(a: int) -> list[int]:
    """The type of the value is that of the function, though the value is None."""
    return [a]


@task(
    name="a.b",
    aliases=["c:d"],
    retry=RetryPolicy(max_attempts=5),
    timeout=3.0,
    queue="q",
    priority=1,
    result_ttl=60.0,
)
def marked(a: int) -> float:
    """A function marked with options too."""
    return a / 2


assert_type(__version__, str)

# The ports, and what keeps to them.
_b1: Backend = SQLiteBackend("sitq.db", synchronous="NORMAL")
_b2: Backend = MemoryBackend()
_b3: Backend = FaultyBackend(MemoryBackend())
_b5: TransactionalBackend = SQLiteBackend("sitq.db")
_b8: BlockingBackend = SQLiteBackend("sitq.db")
_b9: BlockingBackend = MemoryBackend()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
_s1: Serializer = MsgpackSerializer()
_c1: Clock = SystemClock()
_c2: Clock = FakeClock()
_b4: Backend = MsgpackSerializer()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
_b6: TransactionalBackend = MemoryBackend()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
_c3: Clock = MsgpackSerializer()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
_s2: Serializer = SystemClock()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
SQLiteBackend("sitq.db", synchronous="OFF")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def enqueueing(queue: TaskQueue, eta: datetime) -> None:
    """From the function to the id."""
    assert_type(await queue.enqueue(add, 1, 2), TaskId[int])
    assert_type(await queue.enqueue(add, 1, b=2), TaskId[int])
    assert_type(await queue.enqueue(join, "a", sep="-"), TaskId[str])
    assert_type(await queue.enqueue(place, Order(number=1)), TaskId[Order | None])
    assert_type(await queue.enqueue(log, "a"), TaskId[None])
    assert_type(await queue.enqueue(bare, 1), TaskId[bytes])
    assert_type(await queue.enqueue(marked, 1), TaskId[float])
    assert_type(await queue.enqueue(unstored, 1), TaskId[list[int]])
    assert_type(await queue.enqueue(add, 1, 2, eta=eta), TaskId[int])
    assert_type(await queue.enqueue(join, "a", eta=None), TaskId[str])

    await queue.enqueue(add, "one", 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await queue.enqueue(add, 1, 2, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await queue.enqueue(add, 1, c=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await queue.enqueue(join, "a", sep=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue(add, 1, eta="now")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await queue.enqueue("add", 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def with_options(queue: TaskQueue, eta: datetime) -> None:
    """Options keep the arguments checked."""
    bound = queue.options(
        eta=eta,
        delay=timedelta(seconds=1),
        queue="q",
        priority=1,
        timeout=1,
        retry=RetryPolicy(
            max_attempts=2,
            delay=1,
            retry_on=(ValueError, "os.error"),
            no_retry_on=(KeyError, "a.B"),
        ),
        unique_key="k",
        unique_until="start",
        expires_at=eta,
        result_ttl=60.0,
        headers={"a": "b"},
    )
    assert_type(await bound.enqueue(add, 1, 2), TaskId[int])
    assert_type(await bound.enqueue(join, "a"), TaskId[str])
    assert_type(await bound.enqueue_many([call(add, 1)]), list[TaskId[int]])
    queue.options(delay=1.5)

    await bound.enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await bound.enqueue(add, 1, eta=eta)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RetryPolicy(no_retry_on=(1,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Fail("reason"), Fail)
    Fail(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.options(delay="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.options(headers={"a": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    queue.options(unique_until="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.options(prio=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def in_transactions(
    queue: TaskQueue,
    blocking: sqlite3.Connection | Connection | Session,
    awaited: aiosqlite.Connection | AsyncConnection | AsyncSession,
    eta: datetime,
) -> None:
    """Bound to a connection, a queue keeps all of its types."""
    assert_type(await queue.bind(blocking).enqueue(add, 1, 2), TaskId[int])
    bound = queue.bind(awaited)
    assert_type(await bound.enqueue(join, "a", eta=eta), TaskId[str])
    assert_type(
        await bound.options(priority=1).enqueue(place, Order(number=1)), TaskId[Order | None]
    )
    assert_type(await bound.enqueue_many([call(add, 1)]), list[TaskId[int]])
    await current_task().complete_in(blocking, 1)
    await current_task().complete_in(awaited)
    current_task().complete_in_sync(blocking, 1)
    with SyncTaskQueue() as plain:
        assert_type(plain.bind(blocking).enqueue(add, 1, 2), TaskId[int])
        assert_type(plain.bind(blocking).options(delay=1).enqueue(join, "a"), TaskId[str])

        plain.bind(awaited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        plain.bind(blocking).enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    current_task().complete_in_sync(awaited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bound.enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    queue.bind("sqlite:///q.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def in_batches(queue: TaskQueue) -> None:
    """A call keeps what it returns."""
    assert_type(call(add, 1, 2), Call[int])
    assert_type(call(join, "a"), Call[str])
    assert_type(await queue.enqueue_many(call(add, n) for n in range(3)), list[TaskId[int]])

    call(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue_many([add])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def reading(queue: TaskQueue, number: TaskId[int], text: str) -> None:
    """From the id to the value."""
    result = await queue.get_result(number, timeout=1)
    assert_type(result, Result[int] | None)
    if result is not None:
        assert_type(queue.deserialize_result(result), int)
        assert_type(result.task_id, TaskId[int])
        assert_type(result.status, TaskStatus)
        assert_type(result.value, bytes | None)
        assert_type(result.finished_at, datetime)
        assert_type(result.started_at, datetime | None)
    untyped = await queue.get_result(text)
    assert_type(untyped, Result[object] | None)
    if untyped is not None:
        assert_type(queue.deserialize_result(untyped), object)
    assert_type(await queue.get_result(TaskId[str](text)), Result[str] | None)
    assert_type(await queue.result(number, timeout=1), int)
    assert_type(await queue.result(text), object)
    assert_type(await queue.retry(number), TaskId[int])
    assert_type(await queue.retry(text), TaskId[object])
    assert_type(await queue.cancel(text), bool)
    assert_type(await queue.prune(older_than=60), int)
    info = await queue.get_task(text)
    assert_type(info, TaskInfo)
    assert_type(info.progress, Progress | None)
    assert_type(info.eta, datetime)

    queue.deserialize_result(await queue.get_result(number))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await queue.result(7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.get_result(7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    other: TaskId[str] = number  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    plain: str = number
    wider: TaskId[object] = number
    print(other, plain, wider)


def from_plain_code(number: TaskId[int], text: str, eta: datetime) -> None:
    """The same types without ``async``."""
    with SyncTaskQueue(SQLiteBackend("sitq.db"), MsgpackSerializer()) as queue:
        assert_type(queue, SyncTaskQueue)
        assert_type(queue.enqueue(add, 1, 2), TaskId[int])
        assert_type(queue.enqueue(join, "a", eta=eta), TaskId[str])
        assert_type(queue.options(delay=1).enqueue(add, 1), TaskId[int])
        assert_type(queue.options(delay=1).enqueue_many([call(join, "a")]), list[TaskId[str]])
        assert_type(queue.enqueue_many([call(add, 1)]), list[TaskId[int]])
        result = queue.get_result(number)
        assert_type(result, Result[int] | None)
        if result is not None:
            assert_type(queue.deserialize_result(result), int)
        assert_type(queue.get_result(text), Result[object] | None)
        assert_type(queue.result(number), int)
        assert_type(queue.result(text, timeout=0), object)
        assert_type(queue.retry(number), TaskId[int])
        assert_type(queue.get_task(text), TaskInfo)
        assert_type(queue.cancel(text), bool)
        assert_type(queue.prune(1), int)

        queue.enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        queue.options(delay=1).enqueue(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def working(backend: Backend) -> None:
    """The worker's side."""
    worker = Worker(backend, tasks=[add, join], queues=("default", "q"), max_concurrency=3)
    Worker(backend, queues="*")
    assert_type(await worker.drain(), int)
    await worker.stop()
    async with Worker(backend) as entered:
        assert_type(entered, Worker)
    assert_type(worker.run(drain=True, backend="trio"), int)
    worker.run(backend="curio")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Worker(backend, max_concurrency="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    attempt = current_task()
    assert_type(attempt.attempt, int)
    assert_type(attempt.headers, Mapping[str, str])
    assert_type(attempt.cancel_requested, bool)
    attempt.progress(1, total=2, note="half")
    attempt.progress("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    raise Retry(delay=2.5)


def models(stored: Task, reserved: ReservedTask, result: Result[int]) -> None:
    """What travels."""
    assert_type(stored.payload, bytes)
    assert_type(stored.eta, datetime | None)
    assert_type(reserved.epoch, int)
    assert_type(reserved.headers, Mapping[str, str])
    wider: Result[object] = result
    narrower: Result[str] = result  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wider, narrower, datetime.now(UTC))


async def clients() -> None:
    """The queues inside of a task: one to await, one that blocks."""
    context = current_task()
    assert_type(context.worker_id, str)
    client, plain = context.queue_client, context.sync_queue_client
    assert_type(client, QueueClient)
    assert_type(await client.enqueue(add, 1, 2), TaskId[int])
    assert_type(await client.enqueue(join, "a", eta=None), TaskId[str])
    assert_type(await client.options(delay=1).enqueue(join, "a"), TaskId[str])
    assert_type(await client.enqueue_many([call(add, 1)]), list[TaskId[int]])
    assert_type(plain, SyncQueueClient)
    assert_type(plain.enqueue(add, 1, 2), TaskId[int])
    assert_type(plain.options(queue="mail").enqueue(join, "a"), TaskId[str])
    assert_type(plain.enqueue_many([call(add, 1)]), list[TaskId[int]])
    await client.enqueue(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    plain.enqueue(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    context.queue_client = client  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@task(priority="high")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def wrongly_marked() -> None:
    """An option of a wrong type is refused."""


def errors(error: SitqError) -> None:
    """One root; some are builtin errors too."""
    value: ValueError = ValidationError("x")
    lookup: LookupError = TaskNotFoundError("x")
    roots: list[SitqError] = [
        SerializationError("x"),
        UsageError("x"),
        TaskFailedError("x"),
        LeaseLostError("x"),
    ]
    stores: list[BackendError] = [
        BackendBusyError("x"),
        BackendConnectionError("x"),
        BackendFormatError("x"),
        BackendFullError("x"),
    ]
    nothing: Any = (value, lookup, roots, stores, error)
    print(nothing)
