"""The queues that running tasks have on the store of their worker."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from sitq import (
    Extension,
    MsgpackSerializer,
    QueueClient,
    SQLiteBackend,
    SyncQueueClient,
    Task,
    TaskId,
    TaskQueue,
    UsageError,
    ValidationError,
    Worker,
    current_task,
)
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from tests.queue_client_checks import check_both_clients, double, enqueue_async, enqueue_plain
from tests.worker.gate import GATE, until

pytestmark = pytest.mark.anyio

KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    KEPT.clear()


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    return SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")


async def test_async_and_plain_functions_enqueue_to_the_store_of_their_worker(
    backend: Backend,
) -> None:
    await check_both_clients(backend)


async def test_a_client_opens_and_closes_nothing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    async with TaskQueue(backend) as queue:
        await queue.enqueue(enqueue_async)
        await queue.enqueue(enqueue_plain)
        for name in ("open", "close"):
            before = getattr(type(backend), name)

            async def count(self: Any, name: str = name, before: Any = before) -> None:
                calls.append(name)
                await before(self)

            monkeypatch.setattr(type(backend), name, count)
        await Worker(backend).drain()
        assert calls == ["open", "close"]  # of the worker


async def keep() -> None:
    context = current_task()
    KEPT.extend([context.queue_client, context.sync_queue_client])


async def test_a_client_ends_with_its_worker(backend: Backend) -> None:
    """The store is still open, for the queue."""
    async with TaskQueue(backend) as queue:
        await queue.enqueue(keep)
        await Worker(backend).drain()
        client, plain = KEPT
        assert isinstance(client, QueueClient)
        assert isinstance(plain, SyncQueueClient)
        with pytest.raises(UsageError, match="the worker of this task has ended"):
            await client.enqueue(double, 1)
        with pytest.raises(UsageError, match="the worker of this task has ended"):
            await client.options(delay=1).enqueue(double, 1)
        with pytest.raises(UsageError, match="the worker of this task has ended"):
            await to_thread.run_sync(plain.enqueue, double, 1)
        assert await Worker(backend).drain() == 0


async def block_the_loop() -> str:
    with pytest.raises(UsageError, match="await the methods of queue_client") as raised:
        current_task().sync_queue_client.enqueue(double, 1)
    return str(raised.value)


async def test_a_plain_client_refuses_the_thread_of_the_loop(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(block_the_loop)
        assert await Worker(backend).drain() == 1
        assert "sync_queue_client would block" in await queue.result(task_id, timeout=20)


def enqueue_in_a_loop_of_its_own() -> None:
    client = current_task().queue_client

    async def enqueue() -> None:
        with pytest.raises(UsageError, match="call sync_queue_client"):
            await client.enqueue(double, 1)

    asyncio.run(enqueue())


async def test_an_async_client_refuses_another_loop(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(enqueue_in_a_loop_of_its_own)
        assert await Worker(backend).drain() == 1
        await queue.result(task_id, timeout=20)


async def enqueue_from_a_thread() -> str:
    return await to_thread.run_sync(current_task().sync_queue_client.enqueue, double, 4)


def enqueue_from_another_thread() -> str:
    client, ids = current_task().sync_queue_client, list[str]()
    thread = threading.Thread(target=lambda: ids.append(client.enqueue(double, 4)))
    thread.start()
    thread.join()
    return ids[0]


@pytest.mark.parametrize("function", [enqueue_from_a_thread, enqueue_from_another_thread])
async def test_any_thread_may_use_a_plain_client(backend: Backend, function: Any) -> None:
    async with TaskQueue(backend) as queue:
        parent: TaskId[str] = await queue.enqueue(function)
        assert await Worker(backend).drain() == 2
        assert await queue.result(TaskId[int](await queue.result(parent)), timeout=20) == 8


async def hog() -> None:
    await until(GATE.entered.is_set)
    GATE.log.append("hogs")
    assert GATE.opened.wait(20)


def enqueue_meanwhile() -> str:
    GATE.entered.set()
    while not GATE.log:
        time.sleep(0.001)
    GATE.opened.set()
    return current_task().sync_queue_client.enqueue(double, 4)


async def test_a_plain_function_enqueues_while_the_loop_is_busy(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        parent = await queue.enqueue(enqueue_meanwhile)
        await queue.enqueue(hog)
        assert await Worker(backend).drain() == 3
        assert await queue.result(TaskId[int](await queue.result(parent)), timeout=20) == 8


async def refuse() -> list[str]:
    client, texts = current_task().queue_client, []
    for arguments in ((), ("x", "y")):
        with pytest.raises(ValidationError) as raised:
            await client.enqueue(double, *arguments)
        texts.append(str(raised.value))
    return texts


async def test_a_client_checks_arguments_as_every_queue(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(refuse)
        assert await Worker(backend).drain() == 1
        assert "number" in (await queue.result(task_id, timeout=20))[0]


async def test_a_client_signs_with_the_keys_of_its_worker(backend: Backend) -> None:
    serializer = MsgpackSerializer(keys=[b"k" * 32])
    async with TaskQueue(backend, serializer) as queue:
        parents = [await queue.enqueue(enqueue_async), await queue.enqueue(enqueue_plain)]
        assert await Worker(backend, serializer).drain() == 10
        for parent in parents:
            first = TaskId[int]((await queue.result(parent, timeout=20))[0])
            assert await queue.result(first, timeout=20) == 2


class Marking(Extension):
    """Adds a header to what is enqueued."""

    async def around_enqueue(self, tasks: Sequence[Task], call_next: Any) -> list[TaskId[Any]]:
        marked = [each.model_copy(update={"headers": {"from": "a task"}}) for each in tasks]
        ids: list[TaskId[Any]] = await call_next(marked)
        return ids


def header() -> str | None:
    return current_task().headers.get("from")


async def enqueue_header() -> list[str]:
    context = current_task()
    one = await context.queue_client.enqueue(header)
    two = await to_thread.run_sync(context.sync_queue_client.enqueue, header)
    return [one, two]


async def test_a_client_has_the_extensions_of_its_worker(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        parent = await queue.enqueue(enqueue_header)
        assert await Worker(backend, extensions=[Marking()]).drain() == 3
        for text in await queue.result(parent, timeout=20):
            assert await queue.result(TaskId[str](text), timeout=20) == "a task"


class Stuck(MemoryBackend):
    """A store whose enqueue does not end, once ``stuck`` is set."""

    stuck = False
    reached = False

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        if self.stuck:
            self.reached = True
            await anyio.sleep_forever()
        return await super().enqueue(tasks)


def enqueue_and_keep_the_error() -> None:
    try:
        current_task().sync_queue_client.enqueue(double, 1)
    except UsageError as error:
        KEPT.append(str(error))


async def test_a_call_of_a_thread_ends_with_the_worker() -> None:
    backend = Stuck()
    async with TaskQueue(backend) as queue:
        await queue.enqueue(enqueue_and_keep_the_error)
        backend.stuck = True
        async with anyio.create_task_group() as group:
            await group.start(Worker(backend, cancel_grace=0).start)
            await until(lambda: backend.reached)
            group.cancel_scope.cancel()
        await until(lambda: KEPT)
    assert KEPT == ["the worker ended during this call, which may have been carried out"]


async def worker_id() -> str:
    return current_task().worker_id


async def test_a_task_knows_the_id_that_its_worker_logs(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sitq")
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(worker_id)
        await Worker(backend).drain()
        found = await queue.result(task_id, timeout=20)
    assert found == vars(caplog.records[0])["worker_id"]


async def reprs() -> list[str]:
    context = current_task()
    return [repr(context.queue_client), repr(context.sync_queue_client)]


async def test_a_client_names_its_store() -> None:
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(reprs)
        await Worker(backend).drain()
        assert await queue.result(task_id, timeout=20) == [
            "QueueClient(MemoryBackend(<1 tasks>))",
            "SyncQueueClient(MemoryBackend(<1 tasks>))",
        ]
