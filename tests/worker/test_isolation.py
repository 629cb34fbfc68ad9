"""Tasks that one worker runs do not touch each other, nor the worker."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import anyio
import pytest
from anyio import from_thread
from anyio.lowlevel import checkpoint
from pydantic import BaseModel, field_validator

from sitq import (
    SQLiteBackend,
    SyncTaskQueue,
    TaskQueue,
    TaskStatus,
    UsageError,
    Worker,
    call,
    current_task,
)
from sitq.backends.memory import MemoryBackend
from sitq.models import LeaseState
from sitq.testing import FaultyBackend

pytestmark = pytest.mark.anyio

NOTE: ContextVar[str] = ContextVar("note", default="nothing")
WORKERS: list[Worker] = []
CANCELLED = threading.Event()
STARTED: list[str] = []


async def leave_a_note(text: str) -> str:
    before = NOTE.get()
    NOTE.set(text)
    return before


async def leave_a_note_and_wait(text: str) -> str:
    before = NOTE.get()
    NOTE.set(text)
    await checkpoint()
    assert NOTE.get() == text
    return before


def leave_a_note_in_a_thread(text: str) -> str:
    before = NOTE.get()
    NOTE.set(text)
    return before


async def cancel_my_asyncio_task() -> str:
    task = asyncio.current_task()
    assert task is not None
    cancel(task)
    return "returned"


async def cancel_my_asyncio_task_later() -> str:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(cancel, task)
    return "returned"


async def cancel_my_asyncio_task_after_waiting() -> str:
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.005, cancel, task)
    return "returned"


def return_what_cancels_its_asyncio_task() -> object:
    return cancel_my_asyncio_task_after_waiting()


def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    CANCELLED.set()


async def be_there_when_it_happens() -> str:
    STARTED.append(current_task().id)
    while not CANCELLED.is_set():
        await checkpoint()
    await checkpoint()
    return "unharmed"


async def innocent() -> str:
    await anyio.sleep(0.01)
    return "unharmed"


async def stop_my_worker() -> str:
    await WORKERS[-1].stop()
    return current_task().id


def stop_my_worker_from_a_thread() -> str:
    from_thread.run(WORKERS[-1].stop)
    return current_task().id


@pytest.mark.parametrize(
    "function", [leave_a_note, leave_a_note_and_wait, leave_a_note_in_a_thread]
)
async def test_a_context_variable_ends_with_its_task(tmp_path: Path, function: object) -> None:
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        assert callable(function)
        ids = await queue.enqueue_many([call(function, f"note {n}") for n in range(60)])
        await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=1).drain()
        results = [await queue.get_result(task_id, 0) for task_id in ids]
    assert {queue.deserialize_result(result) for result in results if result} == {"nothing"}
    assert None not in results


class Noting(BaseModel):
    """Its validator leaves a note, as the function's own code does."""

    text: str

    @field_validator("text")
    @classmethod
    def note(cls, text: str) -> str:
        with suppress(UsageError):  # the caller of `enqueue` is no task
            SEEN.append((current_task().id, NOTE.get()))
            NOTE.set(text)
        return text


SEEN: list[tuple[str, str]] = []


async def note_of_validator(noting: Noting) -> tuple[str, str]:
    return noting.text, NOTE.get()


async def test_a_validator_runs_in_the_context_of_its_attempt(tmp_path: Path) -> None:
    SEEN.clear()
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        ids = [await queue.enqueue(note_of_validator, Noting(text=text)) for text in "ab"]
        await Worker(backend, max_concurrency=1).drain()
        assert [await queue.result(each, 0) for each in ids] == [("a", "a"), ("b", "b")]
    assert [(task_id, "nothing") for task_id in ids] == SEEN


class Kept:
    """Something that an attempt keeps in a context variable."""


KEPT: ContextVar[Kept] = ContextVar("KEPT")
REFERENCES: list[weakref.ref[Kept]] = []


async def keep_something() -> None:
    KEPT.set(kept := Kept())
    REFERENCES.append(weakref.ref(kept))


async def keep_something_and_wait() -> None:
    await keep_something()
    await checkpoint()


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("function", [keep_something, keep_something_and_wait])
async def test_what_an_attempt_held_is_freed_without_the_garbage_collector(
    tmp_path: Path, function: Callable[..., object]
) -> None:
    REFERENCES.clear()
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        await queue.enqueue_many([call(function) for _ in range(5)])
        await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=2).drain()
    assert [reference() for reference in REFERENCES] == [None] * 5


@pytest.mark.parametrize(
    "function",
    [
        cancel_my_asyncio_task,
        cancel_my_asyncio_task_later,
        cancel_my_asyncio_task_after_waiting,
        return_what_cancels_its_asyncio_task,
    ],
)
async def test_a_task_that_cancels_its_asyncio_task_harms_no_other(
    tmp_path: Path, function: object, anyio_backend: str
) -> None:
    if anyio_backend == "trio":
        pytest.skip("trio has no such call")
    assert callable(function)
    CANCELLED.clear()
    STARTED.clear()
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        quick = [call(leave_a_note, "x") for _ in range(50)]  # so that others are reserved ahead
        await queue.enqueue_many(quick)
        odd = await queue.enqueue(function)
        ids = await queue.enqueue_many([call(be_there_when_it_happens) for _ in range(5)])
        with anyio.fail_after(20):
            await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=1).drain()
        for task_id in ids:
            result = await queue.get_result(task_id, 0)
            assert result is not None
            assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 1), result.error
        assert (await queue.get_task(odd)).status is TaskStatus.SUCCESS
    if function is not cancel_my_asyncio_task_later:  # it looks like one that waits
        assert ids == STARTED


HOSTS: list[asyncio.Task[object]] = []


async def wait_for_the_third_time() -> str:
    task = asyncio.current_task()
    assert task is not None
    HOSTS.append(task)
    if len(HOSTS) < 3:
        await anyio.sleep_forever()
    return "returned"


async def wait_for_ever() -> None:
    task = asyncio.current_task()
    assert task is not None
    HOSTS.append(task)
    await anyio.sleep_forever()


async def cancel_my_asyncio_task_and_wait() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("function", "ends_as"),
    [
        (wait_for_the_third_time, TaskStatus.SUCCESS),
        (wait_for_ever, TaskStatus.FAILED),
        (cancel_my_asyncio_task_and_wait, TaskStatus.FAILED),
    ],
)
async def test_an_asyncio_task_cancelled_by_other_code_is_handed_back_but_not_for_ever(
    tmp_path: Path, function: object, ends_as: TaskStatus, anyio_backend: str
) -> None:
    if anyio_backend == "trio":
        pytest.skip("trio has no such call")
    assert callable(function)
    HOSTS.clear()
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        task_id = await queue.enqueue(function)
        worker = Worker(backend)
        group.start_soon(worker.start)
        with anyio.fail_after(20):
            while (result := await queue.get_result(task_id, 0)) is None:
                for host in HOSTS:
                    host.cancel()
                await anyio.sleep(0.005)
        await worker.stop()
    assert (result.status, result.attempts) == (ends_as, 1)


def raise_a_cancellation() -> None:
    STARTED.append(current_task().id)
    raise asyncio.CancelledError


async def test_a_plain_function_that_raises_a_cancellation_is_not_run_again(
    tmp_path: Path,
) -> None:
    STARTED.clear()
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        ids = await queue.enqueue_many([call(raise_a_cancellation) for _ in range(3)])
        await Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=1).drain()
    assert ids == STARTED


OPEN: list[object] = []


async def leave_a_scope_open(seconds: float) -> str:
    scope = anyio.move_on_after(seconds)
    OPEN.append(scope)
    scope.__enter__()
    await checkpoint()
    return "returned"


async def numbers() -> AsyncGenerator[int, None]:
    with anyio.fail_after(60):
        for number in range(3):
            await checkpoint()
            yield number


async def numbers_beside_a_task() -> AsyncGenerator[int, None]:
    async with anyio.create_task_group() as group:
        group.start_soon(checkpoint)
        yield 0


async def leave_a_generator_open() -> str:
    OPEN.append(generator := numbers())
    await anext(generator)
    return "returned"


async def leave_a_group_open() -> str:
    OPEN.append(generator := numbers_beside_a_task())
    await anext(generator)
    return "returned"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (leave_a_scope_open, (60.0,)),
        (leave_a_scope_open, (0.0,)),
        (leave_a_generator_open, ()),
        (leave_a_group_open, ()),
    ],
)
async def test_a_task_that_leaves_a_scope_open_harms_no_other(
    tmp_path: Path,
    function: Callable[..., object],
    arguments: tuple[float, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "asyncio")  # it tells of the generator's end
    caplog.set_level(logging.CRITICAL, "trio.async_generator_errors")
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([call(leave_a_note, "x") for _ in range(50)])
        odd = await queue.options(unique_key="odd").enqueue(function, *arguments)
        ids = await queue.enqueue_many([call(innocent) for _ in range(5)])
        worker = Worker(backend, max_concurrency=1)
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            for task_id in ids:
                result = await queue.get_result(task_id, 20)
                assert result is not None
                assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 1), result.error
            await queue.cancel(odd)
            await worker.stop()
    for each in OPEN:
        if isinstance(each, AsyncGenerator):
            with suppress(RuntimeError, BaseExceptionGroup):
                await each.aclose()
    OPEN.clear()


def enqueue_from_a_thread(path: str) -> str:
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        return queue.enqueue(leave_a_note, "from a thread")


def run_a_loop_of_my_own(loop: str) -> str:
    return anyio.run(innocent, backend=loop)


def run_asyncio() -> str:
    return asyncio.run(innocent())


async def test_a_plain_function_may_use_a_queue_or_a_loop_of_its_own(
    tmp_path: Path, anyio_backend: str
) -> None:
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        ids = [
            await queue.enqueue(enqueue_from_a_thread, str(tmp_path / "other.db")),
            await queue.enqueue(run_a_loop_of_my_own, anyio_backend),
            await queue.enqueue(run_asyncio),
        ]
        await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
        results = [await queue.get_result(task_id, 0) for task_id in ids]
    assert [result and result.error for result in results] == [None, None, None]
    assert [queue.deserialize_result(result) for result in results[1:] if result] == [
        "unharmed",
        "unharmed",
    ]


@pytest.mark.parametrize("function", [stop_my_worker, stop_my_worker_from_a_thread])
async def test_a_task_may_stop_the_worker_that_runs_it(tmp_path: Path, function: object) -> None:
    assert callable(function)
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        task_id = await queue.enqueue(function)
        WORKERS.append(Worker(SQLiteBackend(tmp_path / "q.db")))
        with anyio.fail_after(20):
            await WORKERS[-1].start()
        result = await queue.get_result(task_id, 0)
        assert result is not None
        assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 1)


async def test_a_heartbeat_beside_the_last_write_is_no_lost_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The store has the outcome; the worker has not heard of it yet; a heartbeat comes between."""
    backend = FaultyBackend(MemoryBackend())
    finishing, seen = anyio.Event(), threading.Event()
    real_finish, real_keeper = backend.finish, backend.lease_keeper

    async def finish(outcomes):  # type: ignore[no-untyped-def]
        accepted = await real_finish(outcomes)
        finishing.set()
        while not seen.is_set():  # noqa: ASYNC110 - set by a thread
            await anyio.sleep(0.002)
        return accepted

    class Keeper:
        def __init__(self) -> None:
            self.real = real_keeper()
            self.report = self.real.report
            self.deregister = self.real.deregister

        def renew(self, leases, seconds):  # type: ignore[no-untyped-def]
            states = self.real.renew(leases, seconds)
            if LeaseState.LOST in states:
                seen.set()
            return states

        def close(self) -> None:
            self.real.close()

    backend.finish = finish  # type: ignore[method-assign]
    backend.lease_keeper = Keeper  # type: ignore[method-assign]
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(innocent)
        with caplog.at_level(logging.WARNING), anyio.fail_after(20):
            await Worker(backend, lease=0.3).drain()
        assert finishing.is_set()
        assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS
    assert "is lost" not in caplog.text
