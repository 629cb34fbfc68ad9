"""The worker: what runs, how it ends, and what never kills it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from sitq import (
    Result,
    Retry,
    RetryPolicy,
    SQLiteBackend,
    TaskFailedError,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    current_task,
)

pytestmark = pytest.mark.anyio


class Gate:
    """Lets a test and the functions that it runs wait for each other, across threads."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.log: list[Any] = []

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.set()

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


GATE = Gate()


@pytest.fixture(autouse=True)
def fresh_gate() -> None:
    GATE.__init__()  # type: ignore[misc]


async def until(fact: Callable[[], object]) -> None:
    """Wait for a fact that only another thread can bring about."""
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110 - threads and stores set no event of the loop's
            await anyio.sleep(0.002)


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")) as queue:
        yield queue


@asynccontextmanager
async def working(tmp_path: Path, **options: Any) -> AsyncIterator[Worker]:
    """A worker of its own backend that runs beside the block."""
    worker = Worker(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL"), **options)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        yield worker
        await worker.stop()


async def ended(queue: TaskQueue, task_id: Any) -> Result[Any]:
    result: Result[Any] | None = await queue.get_result(task_id, timeout=20)
    assert result is not None
    return result


async def add(a: int, b: int) -> int:
    return a + b


def multiply(a: int, b: int) -> int:
    return a * b


async def bounded() -> None:
    GATE.enter()
    await until(GATE.opened.is_set)
    GATE.leave()


def bounded_in_thread() -> None:
    GATE.enter()
    GATE.opened.wait(20)
    GATE.leave()


async def endless() -> None:
    GATE.enter()
    try:
        await anyio.sleep_forever()
    finally:
        GATE.leave()


async def complain_at_the_end() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise RuntimeError("I was not done")


async def return_at_the_end() -> str:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        return "half done"
    return "never"


def fail(text: str) -> None:
    raise ValueError(text)


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


async def tell() -> dict[str, Any]:
    me = current_task()
    return {"attempt": me.attempt, "headers": dict(me.headers), "deadline": me.deadline}


def tell_in_thread() -> str:
    return current_task().id


async def report_progress() -> None:
    current_task().progress(3, 10, "three of ten")
    GATE.enter()
    await until(GATE.opened.is_set)


def until_cancelled() -> str:
    GATE.enter()
    while not current_task().cancel_requested:
        time.sleep(0.001)
    raise InterruptedError


async def enqueue_more(path: str, depth: int) -> None:
    async with TaskQueue(SQLiteBackend(path)) as queue:
        if depth:
            await queue.enqueue(enqueue_more, path, depth - 1)


@pytest.mark.parametrize(("function", "expected"), [(add, 7), (multiply, 12)])
async def test_async_and_plain_functions_give_their_value(
    queue: TaskQueue, tmp_path: Path, function: Any, expected: int
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(function, 3, 4))
    assert queue.deserialize_result(result) == expected
    assert result.status is TaskStatus.SUCCESS
    assert result.started_at is not None
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.attempts == 1


@pytest.mark.parametrize("function", [bounded, bounded_in_thread])
async def test_never_more_than_max_concurrency_run(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    ids = [await queue.enqueue(function) for _ in range(12)]
    async with working(tmp_path, max_concurrency=3):
        await until(lambda: GATE.running == 3)
        await anyio.wait_all_tasks_blocked()
        assert GATE.most == 3
        GATE.opened.set()
        for task_id in ids:
            await ended(queue, task_id)
    assert GATE.most == 3


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


@pytest.mark.parametrize("function", [endless, bounded_in_thread])
async def test_an_attempt_ends_at_its_timeout(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    async with working(tmp_path, shutdown_timeout=0):
        result = await ended(queue, await queue.options(timeout=0.05).enqueue(function))
        GATE.opened.set()
    assert result.status is TaskStatus.FAILED
    assert "timeout of 0.05 s" in str(result.error)


async def test_what_a_task_raises_at_its_timeout_is_the_cause(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.options(timeout=0.02).enqueue(complain_at_the_end)
    await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
    result = await queue.get_result(task_id, 0)
    assert result is not None
    assert result.error == "TimeoutError: the attempt ran out of its timeout of 0.02 s"
    assert "RuntimeError: I was not done" in str(result.traceback)


async def test_what_a_task_returns_after_its_timeout_is_its_result(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.options(timeout=0.02).enqueue(return_at_the_end)
    await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
    result = await queue.get_result(task_id, 0)
    assert result is not None
    assert (result.status, queue.deserialize_result(result)) == (TaskStatus.SUCCESS, "half done")


async def test_a_thread_that_runs_on_after_its_timeout_keeps_its_place(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path, max_concurrency=1):
        slow = await queue.options(timeout=0.05).enqueue(bounded_in_thread)
        await ended(queue, slow)
        waiting = await queue.enqueue(bounded_in_thread)
        assert await queue.get_result(waiting, timeout=0.2) is None
        assert GATE.most == 1
        GATE.opened.set()
        assert (await ended(queue, waiting)).status is TaskStatus.SUCCESS
    assert GATE.most == 1


async def test_a_task_knows_itself(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        options = queue.options(headers={"trace": "7"}, timeout=30)
        told = queue.deserialize_result(await ended(queue, await options.enqueue(tell)))
        thread_id = await queue.enqueue(tell_in_thread)
        assert queue.deserialize_result(await ended(queue, thread_id)) == thread_id
    assert told["attempt"] == 1
    assert told["headers"] == {"trace": "7"}
    assert abs(told["deadline"] - datetime.now(UTC)) < timedelta(seconds=31)
    with pytest.raises(UsageError, match="only inside a function"):
        current_task()


async def test_progress_can_be_read_while_the_task_runs(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(report_progress)
        await until(GATE.entered.is_set)
        progress = None
        with anyio.fail_after(20):
            while progress is None:
                progress = (await queue.get_task(task_id)).progress
        GATE.opened.set()
        await ended(queue, task_id)
    assert (progress.done, progress.total, progress.note) == (3, 10, "three of ten")


@pytest.mark.parametrize("function", [endless, until_cancelled])
async def test_a_running_task_is_cancelled_at_once_from_anywhere(
    queue: TaskQueue, tmp_path: Path, function: Any
) -> None:
    async with working(tmp_path, lease=3600):
        task_id = await queue.enqueue(function)
        await until(GATE.entered.is_set)
        assert await queue.cancel(task_id)
        result = await ended(queue, task_id)
        assert result.status is TaskStatus.CANCELLED
        assert not await queue.cancel(task_id)


async def test_a_task_cancelled_while_pending_never_starts(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(bounded)
    assert await queue.cancel(task_id)
    async with working(tmp_path):
        await ended(queue, await queue.enqueue(add, 1, 1))
    assert not GATE.entered.is_set()
    assert (await ended(queue, task_id)).started_at is None


async def test_stop_lets_what_runs_finish(queue: TaskQueue, tmp_path: Path) -> None:
    task_id = await queue.enqueue(bounded)
    async with working(tmp_path) as worker, anyio.create_task_group() as group:
        await until(GATE.entered.is_set)
        group.start_soon(worker.stop)
        await anyio.wait_all_tasks_blocked()
        GATE.opened.set()
    assert (await ended(queue, task_id)).status is TaskStatus.SUCCESS


async def test_what_does_not_finish_in_time_is_handed_back_unspent(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(endless)
    async with working(tmp_path, shutdown_timeout=0.01):
        await until(GATE.entered.is_set)
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts, info.crashes) == (TaskStatus.PENDING, 0, 0)
    assert GATE.running == 0


async def test_cancelling_the_scope_around_start_hands_back_too(
    queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = await queue.enqueue(endless)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        await until(GATE.entered.is_set)
        group.cancel_scope.cancel()
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


async def test_a_worker_stops_twice_and_starts_again(queue: TaskQueue, tmp_path: Path) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    await worker.stop()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            with pytest.raises(UsageError, match="running already"):
                await worker.start()
            await ended(queue, await queue.enqueue(add, 1, 1))
            group.start_soon(worker.stop)
            await worker.stop()
        await worker.stop()


async def test_a_worker_is_stopped_from_another_thread(
    queue: TaskQueue, tmp_path: Path, anyio_backend_name: str
) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        other = "trio" if anyio_backend_name == "asyncio" else "asyncio"
        await to_thread.run_sync(lambda: anyio.run(worker.stop, backend=other))


async def test_drain_runs_all_that_is_due_and_what_that_enqueues(
    queue: TaskQueue, tmp_path: Path
) -> None:
    later = await queue.options(delay=3600).enqueue(add, 1, 1)
    for number in range(30):
        await queue.enqueue(add, number, 1)
    await queue.enqueue(enqueue_more, str(tmp_path / "q.db"), 4)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"))
    assert await worker.drain() == 35
    assert await worker.drain() == 0
    assert (await queue.get_task(later)).status is TaskStatus.PENDING


async def test_nothing_starts_before_its_eta_and_then_at_once(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path, poll_interval=60):
        eta = datetime.now(UTC) + timedelta(seconds=0.3)
        result = await ended(queue, await queue.options(eta=eta).enqueue(add, 1, 1))
    assert result.started_at is not None
    assert eta <= result.started_at < eta + timedelta(seconds=5)


async def test_only_the_queues_that_were_named_are_served(queue: TaskQueue, tmp_path: Path) -> None:
    other = await queue.options(queue="other").enqueue(add, 1, 1)
    mine = await queue.options(queue="mine").enqueue(add, 1, 1)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), queues=["mine"])
    assert await worker.drain() == 1
    assert (await ended(queue, mine)).status is TaskStatus.SUCCESS
    assert (await queue.get_task(other)).status is TaskStatus.PENDING


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


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x92\x90", b"\x91\x90", b"\x92\x91\x01\x80"])
async def test_a_bad_payload_touches_only_its_own_row(
    queue: TaskQueue, tmp_path: Path, payload: bytes
) -> None:
    from sitq.ids import new_task_id
    from sitq.models import Task
    from sitq.registry import known

    name = known.add(add).name
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


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "10"}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"queues": "default"}, "queues"),
        ({"queues": []}, "queues"),
        ({"queues": 5}, "queues"),
        ({"queues": None}, "queues"),
        ({"serializer": 5}, "serializer"),
        ({"queues": ["with space"]}, "queues"),
        ({"lease": 0}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"poll_interval": -1}, "poll_interval"),
        ({"shutdown_timeout": float("inf")}, "shutdown_timeout"),
        ({"tasks": 7}, "tasks"),
        ({"tasks": ["add"]}, "tasks"),
        ({"tasks": [lambda: None]}, "lambda"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Worker(SQLiteBackend("q.db"), **options)


def test_a_worker_needs_a_store() -> None:
    with pytest.raises(ValidationError, match="backend: .*got str"):
        Worker("q.db")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="backend: .*got the class SQLiteBackend"):
        Worker(SQLiteBackend)  # type: ignore[arg-type]


async def test_no_argument_and_no_result_is_ever_logged(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with working(tmp_path):
            await ended(queue, await queue.enqueue(secretive, "hunter2"))
            await ended(queue, await queue.enqueue(fail, "hunter2"))
    assert "hunter2" not in caplog.text


async def test_a_failure_is_logged_by_id_name_and_type(
    queue: TaskQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0)
    with caplog.at_level(logging.INFO):
        async with working(tmp_path):
            task_id = await queue.options(retry=policy).enqueue(fail, "hunter2")
            await ended(queue, task_id)
    told = [record for record in caplog.records if task_id in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO", "INFO"]
    assert told[0].getMessage().endswith("fail ended as retry (ValueError)")
    assert told[1].getMessage().endswith("fail ended as failure (ValueError)")


@pytest.mark.parametrize("timeout", [1e-6, 1e-4])
async def test_a_thread_that_never_began_gives_its_place_back(
    queue: TaskQueue, tmp_path: Path, timeout: float
) -> None:
    """Plain functions whose time is over before they start do not use a worker up."""
    for _ in range(3):
        await queue.options(timeout=timeout).enqueue(multiply, 1, 1)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), max_concurrency=2)
    with anyio.fail_after(20):
        assert await worker.drain() == 3
    task_id = await queue.enqueue(multiply, 3, 4)
    assert await worker.drain() == 1
    assert queue.deserialize_result(await ended(queue, task_id)) == 12


class Baseless(BaseException):
    def __str__(self) -> str:
        raise Baseless


async def fail_baseless() -> None:
    raise Baseless


async def test_an_error_that_cannot_even_be_told_is_a_failed_task(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(fail_baseless))
        assert "Baseless" in str(result.error)
        assert (await ended(queue, await queue.enqueue(add, 1, 1))).status is TaskStatus.SUCCESS


async def test_a_drain_leaves_no_expired_task_pending(queue: TaskQueue, tmp_path: Path) -> None:
    expires_at = datetime.now(UTC) + timedelta(milliseconds=20)
    task_id = await queue.options(expires_at=expires_at).enqueue(add, 1, 1)
    await until(lambda: datetime.now(UTC) > expires_at)
    assert await Worker(SQLiteBackend(tmp_path / "q.db")).drain() == 0
    assert (await ended(queue, task_id)).status is TaskStatus.EXPIRED


async def test_a_relative_path_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with TaskQueue(SQLiteBackend("relative.db")) as queue:
        monkeypatch.chdir("/")
        await queue.enqueue(add, 1, 1)
    assert (tmp_path / "relative.db").exists()
