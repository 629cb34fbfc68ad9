"""Threads without an event loop write to the file themselves, and nothing else is harmed by it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    BackendBusyError,
    SQLiteBackend,
    SyncTaskQueue,
    TaskQueue,
    TaskStatus,
    UsageError,
    Worker,
)
from sitq.backends.sqlite import _durability, _file, _writer
from sitq.backends.sqlite._database import SQLiteDatabase
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.backends.sqlite._writer import Writer
from tests.unit.queue_support import add


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[SyncTaskQueue]:
    with SyncTaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        yield queue


def database_of(queue: SyncTaskQueue) -> SQLiteDatabase:
    backend: Any = queue._backend
    database: SQLiteDatabase = backend._open_counter.use_from_thread().database
    return database


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which thread wrote how many requests, a transaction each."""
    seen: list[tuple[str, int]] = []
    transact = Writer._transact

    def note(self: Writer, operations: Sequence[Any], *rest: Any) -> Any:
        seen.append((threading.current_thread().name, len(operations)))
        return transact(self, operations, *rest)

    monkeypatch.setattr(Writer, "_transact", note)
    return seen


def test_the_caller_writes_while_no_other_call_does(
    queue: SyncTaskQueue, writers: list[tuple[str, int]]
) -> None:
    with database_of(queue)._connection.usage._lock:
        pass  # the connection's own thread has opened the file, and gives it back
    task_id = queue.enqueue(add, 1, 2)
    assert writers == [(threading.current_thread().name, 1)]
    assert queue.get_task(task_id).status is TaskStatus.PENDING


def test_threads_that_wait_at_the_same_time_are_written_together(
    queue: SyncTaskQueue, writers: list[tuple[str, int]]
) -> None:
    database = database_of(queue)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(20)

    database._connection.post(hold)
    assert held.wait(20)
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(queue.enqueue(add, 1, 2))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    while len(database._pending) < 8:
        os.sched_yield()
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert [count for _, count in writers] == [8]
    assert {queue.get_task(each).status for each in ids} == {TaskStatus.PENDING}


def test_a_unique_key_gives_its_holder(queue: SyncTaskQueue) -> None:
    bound = queue.options(unique_key="k")
    assert bound.enqueue(add, 1, 2) == bound.enqueue(add, 3, 4)


def test_options_of_one_thread_are_not_those_of_another(queue: SyncTaskQueue) -> None:
    wrong: list[str] = []

    def enqueue(priority: int) -> None:
        bound = queue.options(priority=priority)
        ids = [bound.enqueue(add, 1, 2) for _ in range(50)]
        wrong.extend(each for each in ids if queue.get_task(each).priority != priority)

    threads = [threading.Thread(target=enqueue, args=(each,)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert wrong == []


@pytest.mark.anyio
async def test_a_worker_elsewhere_is_woken(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    worker = Worker(SQLiteBackend(path), tasks=[add], poll_interval=3600.0)

    def enqueue() -> int:
        with SyncTaskQueue(SQLiteBackend(path)) as queue:
            return queue.result(queue.enqueue(add, 1, 2), timeout=30)

    async with worker, TaskQueue(SQLiteBackend(path)):
        assert await anyio.to_thread.run_sync(enqueue) == 3


Place = tuple[type, str]
PLACES: list[Place] = [
    (_file.DatabaseFile, "check_same"),
    (_durability.Durability, "prepare"),
    (_durability.Durability, "committed"),
    (_durability.Durability, "flush"),
]


@pytest.mark.parametrize(("kind", "name"), PLACES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_ends_its_own_call_only(
    queue: SyncTaskQueue, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, when: str
) -> None:
    """Wherever a signal handler raises, the error is the caller's and the store goes on."""
    queue.enqueue(add, 1, 2)
    original: Callable[..., Any] = getattr(kind, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            original(*args, **kwargs)
        monkeypatch.setattr(kind, name, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.enqueue(add, 3, 4)
    task_id = queue.enqueue(add, 5, 6)
    assert queue.get_task(task_id).status is TaskStatus.PENDING
    with SyncTaskQueue(SQLiteBackend(queue._backend._path)) as other:  # type: ignore[attr-defined]
        other.enqueue(add, 7, 8)  # no lock was left


def test_a_handler_that_interrupts_an_enqueue_is_refused_another(
    queue: SyncTaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue(add, 1, 2)
    original = _file.DatabaseFile.check_same
    refused: list[UsageError] = []

    def check(self: _file.DatabaseFile) -> None:
        monkeypatch.setattr(_file.DatabaseFile, "check_same", original)
        try:
            queue.enqueue(add, 3, 4)
        except UsageError as error:
            refused.append(error)
        original(self)

    monkeypatch.setattr(_file.DatabaseFile, "check_same", check)
    task_id = queue.enqueue(add, 5, 6)
    assert len(refused) == 1
    assert queue.get_task(task_id).status is TaskStatus.PENDING


def test_every_call_ends_when_the_queue_is_closed_under_it(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    for _ in range(10):
        queue = SyncTaskQueue(SQLiteBackend(path, synchronous="NORMAL"))
        queue.connect()
        acknowledged: list[str] = []
        others: list[BaseException] = []
        started = threading.Barrier(5)

        def enqueue(
            queue: SyncTaskQueue = queue,
            ids: list[str] = acknowledged,
            errors: list[BaseException] = others,
            started: threading.Barrier = started,
        ) -> None:
            started.wait(20)
            try:
                while True:
                    ids.append(queue.enqueue(add, 1, 2))
            except UsageError:
                pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=enqueue) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(20)
        while len(acknowledged) < 5:
            os.sched_yield()
        queue.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert others == []
        with SyncTaskQueue(SQLiteBackend(path)) as reader:
            for task_id in acknowledged:
                reader.get_task(task_id)


PRODUCER = """
import signal
import sys
import threading

from sitq import SQLiteBackend, SyncTaskQueue


async def job(number: int) -> None: ...


def produce(queue: SyncTaskQueue) -> None:
    number = 0
    while True:
        number += 1
        try:
            task_id = queue.enqueue(job, number)
        except KeyboardInterrupt:
            continue
        sys.stdout.write(task_id + "\\n")
        sys.stdout.flush()


queue = SyncTaskQueue(SQLiteBackend("q.db"))
for _ in range(int(sys.argv[1])):
    threading.Thread(target=produce, args=(queue,), daemon=True).start()
while True:
    try:
        produce(queue)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize("threads", [0, 3])
def test_what_a_killed_producer_got_acknowledged_is_there(tmp_path: Path, threads: int) -> None:
    """Interrupted again and again, then killed: each id that it printed is in the store."""
    (tmp_path / "producer.py").write_text(PRODUCER)
    printed: set[str] = set()
    for round_ in range(4):
        with subprocess.Popen(
            [sys.executable, "producer.py", str(threads)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = []
            for count in range(20 + 7 * round_):
                lines.append(process.stdout.readline())
                if threads == 0 and count % 2:
                    process.send_signal(signal.SIGINT)
            process.kill()
            lines += process.stdout.readlines()
            printed.update(line.strip() for line in lines if line.endswith("\n") and len(line) > 36)
    assert len(printed) >= 80
    with SyncTaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
        for task_id in printed:
            assert queue.get_task(task_id).status is TaskStatus.PENDING


def test_an_error_keeps_its_cause(
    tmp_path: Path, queue: SyncTaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendBusyError) as caught:
            queue.enqueue(add, 1, 2)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_a_database_in_memory_is_written_by_its_callers_too() -> None:
    with SyncTaskQueue(SQLiteBackend(":memory:")) as queue:
        ids = [queue.enqueue(add, each, 1) for each in range(5)]
        assert queue.drain() == 5
        assert [queue.result(task_id) for task_id in ids] == [1, 2, 3, 4, 5]


def test_a_closed_queue_refuses(tmp_path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(tmp_path / "q.db"))
    queue.enqueue(add, 1, 2)
    queue.close()
    with pytest.raises(UsageError, match="closed"):
        queue.enqueue(add, 1, 2)
    with pytest.raises(UsageError, match="closed"):
        queue.enqueue_many([])
    queue.connect()
    assert queue.enqueue_many([]) == []
    queue.enqueue(add, 1, 2)
    with suppress(UsageError):
        queue.close()


def test_a_finalizer_in_the_database_thread_does_not_end_the_transaction_that_it_interrupts(
    queue: SyncTaskQueue,
) -> None:
    queue.enqueue(add, 1, 2)
    refused: list[UsageError] = []

    def enqueue_from_finalizer() -> None:
        try:
            queue.enqueue(add, 1, 2)
        except UsageError as error:
            refused.append(error)

    def unit(work: SQLiteTransaction, _: object) -> list[bool]:
        weakref.finalize(Collected(), enqueue_from_finalizer)
        return [work.connection.in_transaction]

    assert database_of(queue).write_blocking(unit, (None,)) == [True]
    assert len(refused) == 1
    done = threading.Event()
    database_of(queue)._connection.post(enqueue_from_finalizer)  # while nothing is written
    database_of(queue)._connection.post(done.set)
    assert done.wait(20)
    assert len(refused) == 2


class Collected:
    """An object that is collected at once."""
