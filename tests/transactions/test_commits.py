"""Commits that are not sitq's are heard of, and looking out for them costs nothing for long."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from sitq import TaskQueue, Worker
from sitq.backends.sqlite import _user_commit_watch
from sitq.backends.sqlite._file import DatabaseFile
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.protocols import Topic
from tests.transactions.places import Place
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


@pytest.fixture
def own(queue: TaskQueue, place: Place) -> Iterator[sqlite3.Connection]:
    own = sqlite3.connect(place.path)
    yield own
    own.close()


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What was rung, by whomever."""
    rings: list[set[str]] = []
    signal = WakeupFile.signal

    def note(self: WakeupFile, topics: set[Topic]) -> None:
        rings.append(set(topics))
        signal(self, topics)

    monkeypatch.setattr(WakeupFile, "signal", note)
    return rings


def is_watching(queue: TaskQueue) -> bool:
    """Return whether the queue's store has a thread that polls for commits."""
    session: Any = queue._backend._open_counter.use_from_thread()  # type: ignore[attr-defined]
    return session._store._commits._thread is not None


async def until_nobody_watches(queue: TaskQueue) -> None:
    with anyio.fail_after(20):
        while is_watching(queue):  # noqa: ASYNC110 - a thread sets no event of the loop's
            await anyio.sleep(0.005)


async def test_the_thread_ends_when_there_is_nothing_to_expect(
    queue: TaskQueue, own: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_user_commit_watch, "_IDLE", 0.0)
    bound = queue.bind(own)
    for _ in range(3):
        await bound.enqueue(add, 1, 2)
        assert is_watching(queue)
        own.commit()
        await until_nobody_watches(queue)


async def test_what_was_rolled_back_is_not_expected_for_ever(
    queue: TaskQueue,
    own: sqlite3.Connection,
    rings: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_user_commit_watch, "_IDLE", 0.0)
    monkeypatch.setattr(_user_commit_watch, "_PATIENCE", 0.05)
    await queue.bind(own).enqueue(add, 1, 2)
    own.rollback()
    await until_nobody_watches(queue)
    assert rings == []


async def test_a_transaction_signals_once_however_many_tasks_it_stores(
    queue: TaskQueue,
    own: sqlite3.Connection,
    rings: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_user_commit_watch, "_IDLE", 0.0)
    bound = queue.bind(own)
    for _ in range(50):
        await bound.enqueue(add, 1, 2)
    assert rings == []
    own.commit()
    await until_nobody_watches(queue)
    assert rings == [{"tasks"}]


def watchers() -> list[str]:
    """The threads that look out for commits."""
    return [thread.name for thread in threading.enumerate() if thread.name == "sitq-commits"]


async def test_what_was_committed_before_the_closing_has_rung_by_then(
    queue: TaskQueue, own: sqlite3.Connection, rings: list[set[str]]
) -> None:
    await queue.bind(own).enqueue(add, 1, 2)
    own.commit()
    await queue.close()
    assert rings == [{"tasks"}]


async def test_the_closing_ends_the_thread_whatever_is_still_expected(
    queue: TaskQueue, place: Place, own: sqlite3.Connection, rings: list[set[str]]
) -> None:
    """What is committed later is found by polling."""
    before = len(watchers())
    await queue.bind(own).enqueue(add, 1, 2)
    assert len(watchers()) == before + 1
    await queue.close()
    assert len(watchers()) == before
    own.commit()
    assert rings == []
    assert await Worker(place.backend()).drain() == 1


async def test_a_file_that_is_locked_is_watched_once_it_is_free(
    queue: TaskQueue,
    own: sqlite3.Connection,
    rings: list[set[str]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []
    connect = DatabaseFile.connect

    def refuse(self: DatabaseFile) -> sqlite3.Connection:
        if threading.current_thread().name == "sitq-commits" and len(tries) < 3:
            tries.append(1)
            busy = sqlite3.OperationalError("database is locked")
            busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise busy
        return connect(self)

    monkeypatch.setattr(_user_commit_watch, "_IDLE", 0.0)
    monkeypatch.setattr(DatabaseFile, "connect", refuse)
    await queue.bind(own).enqueue(add, 1, 2)
    own.commit()
    await until_nobody_watches(queue)
    assert (len(tries), rings, caplog.records) == (3, [{"tasks"}], [])


async def test_a_process_that_died_before_it_rang_leaves_the_poll_interval(
    queue: TaskQueue, place: Place, own: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_user_commit_watch.CommitWatch, "expect", lambda *_: None)
    worker = Worker(place.backend(), poll_interval=0.05)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            await anyio.wait_all_tasks_blocked()
            task_id = await queue.bind(own).enqueue(add, 1, 2)
            own.commit()
            assert await queue.get_result(task_id)
            await worker.stop()


async def test_a_store_that_cannot_be_watched_is_no_error_of_the_users(
    queue: TaskQueue,
    place: Place,
    own: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more files")

    monkeypatch.setattr(_user_commit_watch, "WakeupFile", refuse)
    bound = queue.bind(own)
    await bound.enqueue(add, 1, 2)
    await until_nobody_watches(queue)
    monkeypatch.setattr(threading.Thread, "start", _no_more_threads)
    await bound.enqueue(add, 1, 2)
    monkeypatch.undo()
    own.commit()
    assert [record.name for record in caplog.records] == [
        "sitq.backends.sqlite._user_commit_watch"
    ] * 2
    await bound.enqueue(add, 1, 2)
    own.commit()
    assert place.look("SELECT count(*) FROM tasks") == [(3,)]


def _no_more_threads(_: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_wake_up_is_quick_after_the_commit(
    queue: TaskQueue, own: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real time: the transaction takes long, and the ring comes within a moment all the same."""
    rung = threading.Event()
    monkeypatch.setattr(WakeupFile, "signal", lambda *_: rung.set())
    await queue.bind(own).enqueue(add, 1, 2)
    time.sleep(0.3)  # noqa: ASYNC251 - the user's transaction, in the loop's thread
    assert not rung.is_set()
    start = time.monotonic()
    own.commit()
    assert rung.wait(20)
    assert time.monotonic() - start < 2.0
