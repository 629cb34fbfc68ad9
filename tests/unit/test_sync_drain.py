"""`SyncTaskQueue.drain`: what is due runs in the queue's own thread, as tests of web views want."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import RetryPolicy, SQLiteBackend, SyncTaskQueue, TaskStatus, UsageError, ValidationError
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from tests.unit.queue_support import add, greet, mail

QUEUE: list[SyncTaskQueue] = []


def enqueue_another() -> str:
    """A plain task that uses the program's one queue, as a Django or Flask task does."""
    return QUEUE[0].enqueue(greet, "you")


def fail() -> None:
    raise ZeroDivisionError


async def wait_for_ever() -> None:
    STARTED.set()
    await anyio.sleep_forever()


STARTED = threading.Event()


@pytest.fixture(params=["memory", "sqlite", "sqlite in memory"])
def queue(request: Any, tmp_path: Path) -> SyncTaskQueue:
    makers: dict[str, Callable[[], Backend]] = {
        "memory": MemoryBackend,
        "sqlite": lambda: SQLiteBackend(tmp_path / "q.db"),
        "sqlite in memory": lambda: SQLiteBackend(":memory:"),
    }
    return SyncTaskQueue(makers[request.param]())


def test_a_drain_runs_what_is_due(queue: SyncTaskQueue) -> None:
    with queue:
        numbers = [queue.enqueue(add, each, 1) for each in range(3)]
        greeting = queue.enqueue(greet, "you")
        later = queue.options(delay=3600).enqueue(add, 1, 2)
        assert queue.drain(max_concurrency=2) == 4
        assert [queue.result(each, timeout=0) for each in numbers] == [1, 2, 3]
        assert queue.result(greeting, timeout=0) == "hello you"
        assert queue.get_task(later).status is TaskStatus.PENDING
        assert queue.drain() == 0


def test_a_drain_connects_by_itself() -> None:
    queue = SyncTaskQueue(MemoryBackend())
    assert queue.drain() == 0
    queue.close()
    with pytest.raises(UsageError, match="closed"):
        queue.drain()


def test_a_plain_task_may_use_the_queue_that_drains_it(queue: SyncTaskQueue) -> None:
    with queue:
        QUEUE[:] = [queue]
        queue.enqueue(enqueue_another)
        assert queue.drain() == 2


def test_queues_and_the_retry_policy_are_those_of_a_worker(queue: SyncTaskQueue) -> None:
    with queue:
        queue.enqueue(mail, "a")
        failing = queue.enqueue(fail)
        assert queue.drain(queues=["mail"]) == 1
        assert queue.drain(retry=RetryPolicy(max_attempts=2, delay=3600)) == 1
        assert queue.get_task(failing).status is TaskStatus.PENDING
        with pytest.raises(ValidationError, match="max_concurrency"):
            queue.drain(max_concurrency=0)


def test_close_ends_a_drain_and_hands_its_tasks_back(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    queue = SyncTaskQueue(SQLiteBackend(tmp_path / "q.db"))
    task_id = queue.enqueue(wait_for_ever)

    def drain() -> None:
        try:
            queue.drain()
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=drain)
    thread.start()
    assert STARTED.wait(20)
    queue.close()
    thread.join(20)
    assert [type(error) for error in errors] == [UsageError]
    with SyncTaskQueue(SQLiteBackend(tmp_path / "q.db")) as other:
        info = other.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)
