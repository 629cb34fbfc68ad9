"""Wake-ups between instances that share a file, with a wake-up file and without one."""

from __future__ import annotations

import gc
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from sitq.backends.sqlite import SQLiteBackend, _schema, _wakeups
from sitq.errors import BackendError
from sitq.models import Outcome
from sitq.protocols import Listener, Topic
from tests.sqlite.samples import some_task
from tests.worker.gate import until

pytestmark = pytest.mark.anyio


async def returns(listener: Listener, seconds: float = 20) -> bool:
    """Return whether a wait returns within some seconds."""
    with anyio.move_on_after(seconds):
        await listener.wait()
        return True
    return False


@pytest.fixture(params=["wake-up file", "looks", "inotify is used up"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How changes are heard of."""
    if request.param == "looks":
        monkeypatch.setattr(_wakeups, "_CAN_WATCH", False)
    if request.param == "inotify is used up":

        class NoLibrary:
            def inotify_init1(self, flags: int) -> int:
                return -1

        monkeypatch.setattr(_wakeups, "_libc", NoLibrary)
    name: str = request.param
    return name


async def test_each_change_is_heard_by_those_who_listen_for_it(tmp_path: Path, way: str) -> None:
    path = tmp_path / "q.db"
    ours, theirs = SQLiteBackend(path), SQLiteBackend(path)
    await ours.open()
    await theirs.open()
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(theirs.listen("tasks"))
        results = await stack.enter_async_context(theirs.listen("results"))
        cancels = await stack.enter_async_context(theirs.listen("cancels"))
        if way != "wake-up file":  # the first look cannot tell, and says yes
            assert [await returns(each) for each in (tasks, results, cancels)] == [True] * 3
        (task_id,) = await ours.enqueue([some_task()])
        assert await returns(tasks)
        (task,) = (await ours.reserve("w", ["default"], 1, 30.0)).tasks
        assert await ours.cancel(task_id)
        assert await returns(cancels)
        assert await ours.finish([Outcome.cancelled(task.lease)]) == [True]
        assert await returns(results)
        if way == "wake-up file":
            assert not await returns(tasks, 0.05)
    await ours.close()
    await theirs.close()


async def test_ones_own_changes_are_heard_too(tmp_path: Path, way: str) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    async with backend.listen("tasks") as tasks:
        if way != "wake-up file":
            assert await returns(tasks)
        await backend.enqueue([some_task()])
        assert await returns(tasks)
    await backend.close()


async def test_a_wake_up_file_that_signals_in_vain_is_not_watched_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wakeups, "_LINGER", 0.0)
    ours, theirs = SQLiteBackend(tmp_path / "q.db"), SQLiteBackend(tmp_path / "q.db")
    await ours.open()
    await theirs.open()
    watched = ours._open_counter.use()._listeners._watching
    for _ in range(2):
        async with ours.listen("tasks") as tasks:
            await theirs.enqueue([some_task()])
            assert await returns(tasks)
        assert "tasks" in watched
        await theirs.enqueue([some_task()])
        await until(lambda: "tasks" not in watched)
    await ours.close()
    await theirs.close()


async def test_who_listens_on_when_the_store_is_closed_leaves_no_file(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    async with backend.listen("results"):
        pass
    await backend.close()
    gc.collect()  # files that other tests have left open
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        await backend.open()
        async with backend.listen("tasks"), backend.listen("results"):
            await backend.close()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


async def test_a_wait_that_is_cancelled_loses_no_change(tmp_path: Path, way: str) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    async with backend.listen("tasks") as tasks:
        if way != "wake-up file":
            assert await returns(tasks)
        assert not await returns(tasks, 0)
        await backend.enqueue([some_task()])
        await returns(tasks, 0)
        await backend.enqueue([some_task()])
        assert await returns(tasks)
    await backend.close()


@pytest.mark.parametrize("topic", ["tasks", "results", "cancels"])
async def test_a_wake_up_file_that_was_removed_is_made_anew(
    tmp_path: Path, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    """All are woken: who listened before the removal, and who opens the store after it."""
    path, wakeup_file = tmp_path / "q.db", tmp_path / "q.db-bell"
    ours, theirs, late = SQLiteBackend(path), SQLiteBackend(path), SQLiteBackend(path)
    await ours.open()
    await theirs.open()
    (task_id,) = await ours.enqueue([some_task()])
    (task,) = (await ours.reserve("w", ["default"], 1, 30.0)).tasks

    async def change() -> None:
        if topic == "tasks":
            await ours.enqueue([some_task()])
        elif topic == "cancels":
            assert await ours.cancel(task_id)
        else:
            assert await ours.finish([Outcome.success(task.lease, b"")]) == [True]

    async with theirs.listen(topic) as before:
        wakeup_file.unlink()
        await change()
        assert await returns(before)
        assert wakeup_file.exists()
    wakeup_file.unlink()
    await late.open()
    async with late.listen("tasks") as after, theirs.listen("tasks") as before:
        await ours.enqueue([some_task()])
        assert await returns(after)
        await theirs.prune(3600.0)  # any write finds out
        assert await returns(before)
        await ours.enqueue([some_task()])
        assert await returns(before)
        assert await returns(after)
    assert caplog.text.count("removed or replaced while it was open") >= 2
    for backend in (ours, theirs, late):
        await backend.close()


async def test_a_store_that_is_gone_wakes_no_listener(tmp_path: Path, way: str) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    async with backend.listen("tasks") as tasks:
        if way != "wake-up file":
            assert await returns(tasks)
        path.unlink()
        assert not await returns(tasks, 0.2)
    await backend.close()


async def test_an_sqlite_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_schema, "_OLDEST_SQLITE", (99, 1, 0))
    with pytest.raises(BackendError, match=rf"needs SQLite 99\.1\.0.*{sqlite3.sqlite_version}"):
        await SQLiteBackend(tmp_path / "q.db").open()
