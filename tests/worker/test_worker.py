"""The worker: what runs, how much at a time, when, and what it is made with."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    SQLiteBackend,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    current_task,
)
from tests.worker.gate import GATE, add, bounded, bounded_in_thread, ended, multiply, until, working

pytestmark = pytest.mark.anyio


async def tell() -> dict[str, Any]:
    me = current_task()
    return {"attempt": me.attempt, "headers": dict(me.headers), "deadline": me.deadline}


def tell_in_thread() -> str:
    return current_task().id


async def change_myself() -> list[str]:
    """Return the attributes of the context that the task can set."""
    me, changed = current_task(), []
    for name in ("deadline", "cancel_requested", "completed", "request_cancel"):
        with suppress(AttributeError):
            setattr(me, name, None)
            changed.append(name)
    return changed


async def report_progress() -> None:
    current_task().progress(3, 10, "three of ten")
    GATE.enter()
    await until(GATE.opened.is_set)


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


async def test_a_task_knows_itself(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        options = queue.options(headers={"trace": "7"}, timeout=30)
        seen = queue.deserialize_result(await ended(queue, await options.enqueue(tell)))
        thread_id = await queue.enqueue(tell_in_thread)
        assert queue.deserialize_result(await ended(queue, thread_id)) == thread_id
    assert seen["attempt"] == 1
    assert seen["headers"] == {"trace": "7"}
    assert abs(seen["deadline"] - datetime.now(UTC)) < timedelta(seconds=31)
    with pytest.raises(UsageError, match="only inside a function"):
        current_task()


async def test_a_task_cannot_change_its_context(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(change_myself))
    assert queue.deserialize_result(result) == []


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


async def test_a_star_serves_every_queue_new_ones_too(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path, queues="*", poll_interval=3600.0):
        for name in ("one", "two/three", "default", "new"):
            task_id = await queue.options(queue=name).enqueue(add, 1, 2)
            assert await queue.result(task_id, timeout=20) == 3


async def test_only_the_queues_that_were_named_are_served(queue: TaskQueue, tmp_path: Path) -> None:
    other = await queue.options(queue="other").enqueue(add, 1, 1)
    mine = await queue.options(queue="mine").enqueue(add, 1, 1)
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), queues=["mine"])
    assert await worker.drain() == 1
    assert (await ended(queue, mine)).status is TaskStatus.SUCCESS
    assert (await queue.get_task(other)).status is TaskStatus.PENDING


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "10"}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"queues": "default"}, "queues"),
        ({"queues": []}, "queues"),
        ({"queues": ["*", "mail"]}, "queues"),
        ({"queues": 5}, "queues"),
        ({"queues": None}, "queues"),
        ({"serializer": 5}, "serializer"),
        ({"queues": ["with space"]}, "queues"),
        ({"lease": 0}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"poll_interval": -1}, "poll_interval"),
        ({"shutdown_timeout": float("inf")}, "shutdown_timeout"),
        ({"cancel_grace": -1}, "cancel_grace"),
        ({"tasks": 7}, "tasks"),
        ({"tasks": ["add"]}, "tasks"),
        ({"tasks": [lambda: None]}, "lambda"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Worker(SQLiteBackend("q.db"), **options)


@pytest.mark.parametrize(
    ("queues", "text"),
    [
        ([], "queues: give at least one name"),
        (["*", "a"], r"queues: '\*' means every queue"),
        (["with space"], r"queues\.0: give 1 to 128 characters"),
        ([5], r"queues\.0: give 1 to 128 characters.*got int"),
    ],
)
def test_bad_names_of_queues_are_refused_with_one_sentence(queues: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text) as caught:
        Worker(SQLiteBackend("q.db"), queues=queues)
    assert "; " not in str(caught.value)


def test_a_worker_needs_a_store() -> None:
    with pytest.raises(ValidationError, match="backend: .*got str"):
        Worker("q.db")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="backend: .*got the class SQLiteBackend"):
        Worker(SQLiteBackend)  # type: ignore[arg-type]


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
