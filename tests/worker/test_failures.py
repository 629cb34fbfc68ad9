"""Failures: their retries, their logs, and that they kill no worker."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    Retry,
    RetryPolicy,
    SQLiteBackend,
    TaskFailedError,
    TaskQueue,
    TaskStatus,
    Worker,
    current_task,
)
from tests.worker.gate import GATE, add, ended, fail, working

pytestmark = pytest.mark.anyio


async def fail_group() -> None:
    raise ExceptionGroup("two", [ValueError("one"), KeyError("two")])


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def fail_unprintable() -> None:
    raise Unprintable


def fail_surrogate() -> None:
    raise ValueError("\ud800 lone")


def leave_process() -> None:
    raise SystemExit(3)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def cancel_itself() -> None:
    raise asyncio.CancelledError


def stop_iteration() -> None:
    raise StopIteration(1)


def unserialisable() -> Any:
    return object()


def lying() -> int:
    return "no number"  # type: ignore[return-value]


def secretive(password: str) -> None:
    secret = password + "!"
    raise RuntimeError(f"length {len(secret)}")


async def flaky(times: int) -> int:
    GATE.log.append(current_task().attempt)
    if current_task().attempt <= times:
        raise ConnectionError("not yet")
    return current_task().attempt


async def again() -> int:
    if current_task().attempt < 3:
        raise Retry(delay=0)
    return current_task().attempt


class Baseless(BaseException):
    def __str__(self) -> str:
        raise Baseless


async def fail_baseless() -> None:
    raise Baseless


@pytest.mark.parametrize(
    ("function", "arguments", "error"),
    [
        (fail, ("text",), "ValueError: text"),
        (fail_group, (), "ExceptionGroup: two (2 sub-exceptions)"),
        (fail_unprintable, (), "Unprintable: <str() of it raised RuntimeError>"),
        (fail_surrogate, (), "ValueError: \\ud800 lone"),
        (leave_process, (), "SystemExit: 3"),
        (interrupt, (), "KeyboardInterrupt"),
        (stop_iteration, (), "StopIteration: 1"),
        (unserialisable, (), "SerializationError: "),
        (lying, (), "ValidationError: "),
    ],
)
async def test_whatever_a_function_raises_is_a_failed_task_and_a_living_worker(
    queue: TaskQueue, tmp_path: Path, function: Any, arguments: Any, error: str
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(function, *arguments))
        assert result.status is TaskStatus.FAILED
        assert result.error is not None
        assert error in result.error
        with pytest.raises(TaskFailedError, match="failed"):
            queue.deserialize_result(result)
        alive = await ended(queue, await queue.enqueue(add, 1, 1))
        assert alive.status is TaskStatus.SUCCESS


async def test_a_cancellation_out_of_thin_air_is_a_failure(
    queue: TaskQueue, tmp_path: Path, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("only asyncio lets a function raise its cancellation")
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(cancel_itself))
    assert result.status is TaskStatus.FAILED
    assert "CancelledError" in str(result.error)


async def test_an_error_that_cannot_be_made_text_is_a_failed_task(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(fail_baseless))
        assert "Baseless" in str(result.error)
        assert (await ended(queue, await queue.enqueue(add, 1, 1))).status is TaskStatus.SUCCESS


@pytest.mark.parametrize("function", [secretive])
async def test_a_traceback_shows_the_tasks_frames_and_no_values(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(function, "hunter2"))
    assert result.traceback is not None
    assert "in secretive" in result.traceback
    assert "RuntimeError: length 8" in result.traceback
    assert "hunter2" not in result.traceback
    for stranger in ("/sitq/worker/", "/anyio/", "/asyncio/", "/trio/"):
        assert stranger not in result.traceback


async def test_a_failure_is_retried_as_its_policy_says(queue: TaskQueue, tmp_path: Path) -> None:
    policy = RetryPolicy(max_attempts=5, delay=0.01, jitter=0, retry_on=(ConnectionError,))
    async with working(tmp_path):
        good = await queue.options(retry=policy).enqueue(flaky, 2)
        assert queue.deserialize_result(await ended(queue, good)) == 3
        other = await queue.options(retry=policy).enqueue(fail, "not worth it")
        assert (await ended(queue, other)).attempts == 1
    assert GATE.log == [1, 2, 3]


async def test_attempts_end_at_the_policys_number(queue: TaskQueue, tmp_path: Path) -> None:
    policy = RetryPolicy(max_attempts=3, delay=0, jitter=0)
    async with working(tmp_path):
        result = await ended(queue, await queue.options(retry=policy).enqueue(flaky, 100))
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 3)
    assert result.error == "ConnectionError: not yet"


async def test_the_workers_policy_serves_tasks_that_have_none(
    queue: TaskQueue, tmp_path: Path
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0, jitter=0)
    async with working(tmp_path, retry=policy):
        assert (await ended(queue, await queue.enqueue(flaky, 100))).attempts == 2


async def test_a_function_may_ask_for_another_attempt(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(again))
    assert queue.deserialize_result(result) == 3


async def test_an_unknown_function_is_put_back_with_a_warning_and_fails_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sitq.ids import new_task_id
    from sitq.models import Task
    from sitq.testing import FakeClock

    clock = FakeClock()
    backend = SQLiteBackend(tmp_path / "q.db", clock=clock)
    async with TaskQueue(backend) as queue:
        task = Task(id=new_task_id(), function="nowhere:nothing", payload=b"\x92\x90\x80")
        await backend.enqueue([task])
        worker = Worker(backend)
        for attempt in range(10):
            with caplog.at_level(logging.WARNING):
                assert await worker.drain() == 0
            info = await queue.get_task(task.id)
            assert info.attempts == 0 if attempt < 9 else info.status is TaskStatus.FAILED
            clock.advance(120)
        result = await ended(queue, task.id)
        assert "nowhere:nothing" in str(result.error)
        assert "Worker(tasks=[...])" in caplog.text


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x92\x90", b"\x91\x90"])
async def test_a_bad_payload_touches_only_its_own_row(
    queue: TaskQueue, tmp_path: Path, payload: bytes
) -> None:
    from sitq.ids import new_task_id
    from sitq.models import Task
    from sitq.payload.registry import default_registry

    name = default_registry.add(add).name
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    task = Task(id=new_task_id(), function=name, payload=payload)
    await backend.enqueue([task])
    await backend.close()
    good = await queue.enqueue(add, 1, 2)
    async with working(tmp_path):
        assert (await ended(queue, good)).status is TaskStatus.SUCCESS
        bad = await ended(queue, task.id)
    assert bad.status is TaskStatus.FAILED
    assert "Error" in str(bad.error)


async def test_no_argument_and_no_result_is_ever_logged(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with working(tmp_path):
            await ended(queue, await queue.enqueue(secretive, "hunter2"))
            await ended(queue, await queue.enqueue(break_silently, "hunter2"))
    assert "hunter2" not in caplog.text
    assert "ValueError: broken" in caplog.text


def break_silently(text: str) -> None:
    raise ValueError("broken")


async def test_a_name_from_the_store_is_shown_on_one_short_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue(print)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE tasks SET function = ?", ("lost:\nforged" + 999 * "x",))
        await Worker(SQLiteBackend(path)).drain()
    lines = [record.getMessage() for record in caplog.records]
    assert any(r"lost:\nforged" in line for line in lines)
    assert max(map(len, lines)) < 600
    assert "\n" not in "".join(lines)
