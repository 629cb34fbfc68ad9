"""The resources of a worker: opened once, shared by its tasks, and closed after the last one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    BackendBusyError,
    Extension,
    RetryPolicy,
    SQLiteBackend,
    SyncTaskQueue,
    TaskQueue,
    TaskStatus,
    UsageError,
    Worker,
    current_task,
    shared,
)
from sitq.backends.memory import MemoryBackend
from sitq.extensions import Event, WorkerStarted, WorkerStopped
from sitq.testing import FaultyBackend
from tests.worker.gate import GATE, ended, until

pytestmark = pytest.mark.anyio


class Pool:
    """A resource that notes what happens to it."""

    made = 0

    def __init__(self) -> None:
        Pool.made += 1
        self.number = Pool.made
        self.is_open = True


@pytest.fixture(autouse=True)
def none_made() -> None:
    Pool.made = 0


@asynccontextmanager
async def database() -> AsyncIterator[Pool]:
    await anyio.lowlevel.checkpoint()
    GATE.log.append("open database")
    pool = Pool()
    yield pool  # without `finally`: the worker exits it as at a normal end
    await anyio.sleep(0.001)
    pool.is_open = False
    GATE.log.append("close database")


@contextmanager
def mailer() -> Iterator[str]:
    GATE.log.append("open mailer")
    try:
        yield "mailer"
    finally:
        GATE.log.append("close mailer")


async def client() -> str:
    await anyio.lowlevel.checkpoint()
    return "client"


def settings() -> dict[str, int]:
    return {"limit": 3}


class Entered:
    """A class is a factory too, and what it makes may be a context manager."""

    async def __aenter__(self) -> str:
        GATE.log.append("enter")
        return "entered"

    async def __aexit__(self, *_: object) -> None:
        GATE.log.append("exit")


async def report(month: str, db: Pool = shared(database)) -> str:
    return f"{month}: {db.number}, {db.is_open}"


def plain(month: str, db: Pool = shared(database)) -> str:
    assert threading.current_thread() is not threading.main_thread()
    assert current_task().shared(database) is db
    return f"{month}: {db.number}, {db.is_open}"


async def ask() -> str:
    return f"{current_task().shared(database).number}"


async def everything(
    *,
    db: Pool = shared(database),
    mail: str = shared(mailer),
    http: str = shared(client),
    limits: dict[str, int] = shared(settings),
    entered: str = shared(Entered),
) -> str:
    return f"{db.number} {mail} {http} {limits} {entered}"


async def hold(db: Pool = shared(database)) -> bool:
    GATE.enter()
    await until(GATE.opened.is_set)
    return db.is_open


async def hold_on(db: Pool = shared(database)) -> None:
    GATE.enter()
    try:
        await anyio.sleep_forever()
    finally:
        GATE.log.append(f"task ends, open: {db.is_open}")


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyBackend:
    memory = request.param == "memory"
    return FaultyBackend(MemoryBackend() if memory else SQLiteBackend(tmp_path / "q.db"))


async def test_tasks_of_both_kinds_share_one_instance(backend: FaultyBackend) -> None:
    async with TaskQueue(backend) as queue:
        ids = [
            await queue.enqueue(report, "May"),
            await queue.enqueue(plain, "June"),
            await queue.enqueue(ask),
        ]
        worker = Worker(backend, tasks=[report], resources=[database, database])
        assert await worker.drain() == 3
        values = [await queue.result(each, timeout=0) for each in ids]
    assert values == ["May: 1, True", "June: 1, True", "1"]
    assert GATE.log == ["open database", "close database"]


async def test_every_kind_of_factory_makes_its_resource(backend: FaultyBackend) -> None:
    resources = [database, mailer, client, settings, Entered]
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(everything)
        await Worker(backend, resources=resources).drain()
        assert await queue.result(task_id, timeout=0) == "1 mailer client {'limit': 3} entered"
    assert GATE.log == [
        *("open database", "open mailer", "enter"),
        *("exit", "close mailer", "close database"),
    ]


async def test_a_worker_that_starts_again_opens_them_again(backend: FaultyBackend) -> None:
    worker = Worker(backend, resources=[database])
    async with TaskQueue(backend) as queue:
        for number in (1, 2):
            task_id = await queue.enqueue(ask)
            await worker.drain()
            assert await queue.result(task_id, timeout=0) == str(number)


async def test_they_are_open_before_the_worker_is_ready_and_until_the_last_task_has_ended(
    backend: FaultyBackend,
) -> None:
    async with TaskQueue(backend) as queue:
        async with Worker(backend, resources=[database]):
            assert GATE.log == ["open database"]
            task_id = await queue.enqueue(hold)
            await until(GATE.entered.is_set)
            GATE.opened.set()
        assert GATE.log == ["open database", "close database"]
        assert await queue.result(task_id, timeout=0) is True


async def test_they_are_closed_after_a_cancellation_too(backend: FaultyBackend) -> None:
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        await group.start(Worker(backend, resources=[mailer, database]).start)
        task_id = await queue.enqueue(hold_on)
        await until(GATE.entered.is_set)
        group.cancel_scope.cancel()
    assert GATE.log[2:] == ["task ends, open: True", "close database", "close mailer"]
    async with TaskQueue(backend) as queue:
        if isinstance(backend._backend, SQLiteBackend):  # the other one forgets
            assert (await queue.get_task(task_id)).status is TaskStatus.PENDING


@asynccontextmanager
async def broken() -> AsyncIterator[None]:
    GATE.log.append("open broken")
    if not GATE.opened.is_set():
        raise ConnectionRefusedError("no database")
    yield


@pytest.mark.parametrize("how", ["start", "drain", "with"])
async def test_one_that_cannot_be_opened_ends_the_start_with_its_own_error(
    backend: FaultyBackend, how: str
) -> None:
    worker = Worker(backend, resources=[database, mailer, broken, client])
    with pytest.raises(ConnectionRefusedError, match="no database"):
        if how == "start":
            await worker.start()
        elif how == "drain":
            await worker.drain()
        else:
            async with worker:
                pytest.fail("it is not ready")
    assert GATE.log == [
        *("open database", "open mailer", "open broken"),
        *("close mailer", "close database"),
    ]
    assert await Worker(backend).drain() == 0  # the store was closed, and can be opened


async def test_a_start_that_is_cancelled_half_way_closes_what_is_open(
    backend: FaultyBackend,
) -> None:
    async def slow() -> None:
        GATE.enter()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(Worker(backend, resources=[database, slow]).start)
        await until(GATE.entered.is_set)
        group.cancel_scope.cancel()
    assert GATE.log == ["open database", "close database"]


async def test_they_are_closed_if_the_worker_cannot_start(backend: FaultyBackend) -> None:
    backend.fail("renew", error=BackendBusyError("no connection"))
    with pytest.raises(BackendBusyError):
        await Worker(backend, resources=[database]).start()
    assert GATE.log == ["open database", "close database"]


@asynccontextmanager
async def stuck() -> AsyncIterator[None]:
    yield
    raise OSError("cannot close")


async def test_an_error_at_the_end_is_logged_and_raised_once_all_are_closed(
    backend: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OSError, match="cannot close"):
        await Worker(backend, resources=[database, stuck, mailer]).drain()
    assert GATE.log[2:] == ["close mailer", "close database"]
    assert "the resource stuck could not be closed" in caplog.text


async def test_an_error_of_the_worker_comes_before_those_of_its_resources(
    backend: FaultyBackend,
) -> None:
    backend.fail("reserve", error=BackendBusyError("locked"))
    with pytest.raises(BackendBusyError):
        await Worker(backend, resources=[stuck]).drain()


@asynccontextmanager
async def endless() -> AsyncIterator[None]:
    yield
    await anyio.sleep_forever()


async def test_one_that_does_not_close_holds_the_end_up_for_a_while_only(
    backend: FaultyBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sitq.worker._resources._CLOSING_SECONDS", 0.1)
    with anyio.fail_after(20):
        await Worker(backend, resources=[mailer, endless]).drain()
    assert GATE.log == ["open mailer", "close mailer"]
    assert "the resource endless did not close in time" in caplog.text


@asynccontextmanager
async def nursery() -> AsyncIterator[Any]:
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


async def spawn(group: Any = shared(nursery)) -> None:
    group.start_soon(anyio.sleep_forever)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_resource_may_hold_a_task_group(backend: FaultyBackend, is_cancelled: bool) -> None:
    worker = Worker(backend, resources=[database, nursery, mailer])
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        await group.start(worker.start)
        await queue.result(await queue.enqueue(spawn), timeout=20)
        if is_cancelled:
            group.cancel_scope.cancel()
        else:
            await worker.stop()
    assert GATE.log[-2:] == ["close mailer", "close database"]


async def test_a_task_fails_that_needs_what_its_worker_does_not_have(
    backend: FaultyBackend,
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0, jitter=0)
    async with TaskQueue(backend) as queue:
        ids = [await queue.options(retry=policy).enqueue(report, "May"), await queue.enqueue(ask)]
        worker = Worker(backend, resources=[mailer])
        await worker.drain()
        await worker.drain()
        first, second = [await ended(queue, each) for each in ids]
    for result in (first, second):
        assert result.status is TaskStatus.FAILED
        assert result.error is not None
        assert "this worker does not have the resource database" in result.error
        assert "Worker(resources=[database])" in result.error
    assert first.attempts == 2  # another worker may have it


async def test_a_thread_that_was_left_finds_them_closed(queue: TaskQueue, tmp_path: Path) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), resources=[database], shutdown_timeout=0.0)
    async with worker:
        await queue.enqueue(look_late)
        await until(GATE.entered.is_set)
    GATE.opened.set()
    await until(lambda: "does not have the resource database" in str(GATE.log[-1]))


def look_late() -> None:
    me = current_task()
    GATE.enter()
    GATE.opened.wait(20)
    try:
        me.shared(database)
    except UsageError as error:
        GATE.log.append(str(error))


async def test_the_worker_says_that_it_has_started_and_stopped_outside_of_them(
    backend: FaultyBackend,
) -> None:
    class Notes(Extension):
        def on_event(self, event: Event) -> None:
            if isinstance(event, WorkerStarted | WorkerStopped):
                GATE.log.append(type(event).__name__)

    await Worker(backend, resources=[database], extensions=[Notes()]).drain()
    assert GATE.log == ["open database", "WorkerStarted", "close database", "WorkerStopped"]


def test_a_drain_of_a_sync_queue_has_resources() -> None:
    with SyncTaskQueue(MemoryBackend()) as queue:
        task_id = queue.enqueue(plain, "May")
        assert queue.drain(resources=[database]) == 1
        assert queue.result(task_id, timeout=0) == "May: 1, True"


async def test_without_resources_there_is_nothing_to_close(
    backend: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await Worker(backend).drain() == 0
    assert not caplog.records


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_they_are_closed_when_asyncio_cancels_the_workers_task(
    backend: FaultyBackend,
) -> None:
    """As at the end of `asyncio.run` after Ctrl-C."""
    async with TaskQueue(backend) as queue:
        running = asyncio.create_task(Worker(backend, resources=[mailer, database]).start())
        await queue.enqueue(hold_on)
        await until(GATE.entered.is_set)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert GATE.log[2:] == ["task ends, open: True", "close database", "close mailer"]
