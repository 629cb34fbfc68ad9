"""Results of tasks that have just ended are at hand for those who wait in the same instance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskId
from sitq.backends.sqlite import _fresh_results
from sitq.backends.sqlite._database import SQLiteDatabase
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.models import Outcome
from sitq.protocols import Topic
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the units that read the store."""
    names: list[str] = []
    read = SQLiteDatabase.read

    async def spied(database: SQLiteDatabase, unit: Any, *parameters: Any) -> Any:
        names.append(unit.__name__)
        return await read(database, unit, *parameters)

    monkeypatch.setattr(SQLiteDatabase, "read", spied)
    return names


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteBackend]:
    backend = SQLiteBackend(path)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def ended(backend: SQLiteBackend, count: int = 1) -> list[TaskId[Any]]:
    """Tasks that were stored, reserved and have ended well."""
    await backend.enqueue([some_task() for _ in range(count)])
    tasks = (await backend.reserve("w", ["default"], count, 30.0)).tasks
    await backend.finish([Outcome.success(task.lease, task.id.encode()) for task in tasks])
    return [task.id for task in tasks]


async def test_listeners_read_them_from_the_store_if_that_is_switched_off(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fresh_results, "ENABLED", False)
    async with opened(tmp_path / "q.db") as backend, backend.listen("results") as listener:
        (task_id,) = await ended(backend)
        await listener.wait()
        result = (await backend.get_results([task_id]))[task_id]
        assert result is not None
        assert result.value == task_id.encode()
        assert reads == ["get_results"]


async def test_who_listens_gets_them_without_a_look(tmp_path: Path, reads: list[str]) -> None:
    async with opened(tmp_path / "q.db") as backend, backend.listen("results") as listener:
        ids = await ended(backend, 2)
        await listener.wait()
        results = await backend.get_results(ids)
        assert reads == []
        assert [result and result.value for result in results.values()] == [
            task_id.encode() for task_id in ids
        ]
        assert await backend.get_results(ids) == results  # they are handed out once
        assert reads == ["get_results"]


async def test_they_are_at_hand_before_the_wake_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, at_hand = WakeupFile.signal, list[list[str]]()

    async with opened(tmp_path / "q.db") as backend, backend.listen("results"):

        def watched_signal(file: WakeupFile, topics: set[Topic]) -> None:
            if "results" in topics:
                at_hand.append(list(backend._open_counter.use_from_thread().fresh_results._results))
            signal(file, topics)

        monkeypatch.setattr(WakeupFile, "signal", watched_signal)
        ids = await ended(backend)
    assert at_hand == [ids]


async def test_an_id_may_be_asked_for_twice(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend, backend.listen("results"):
        ids = await ended(backend)
        assert list(await backend.get_results(ids * 2)) == ids


async def test_what_is_asked_for_besides_them_is_looked_for(
    tmp_path: Path, reads: list[str]
) -> None:
    async with opened(tmp_path / "q.db") as backend, backend.listen("results"):
        (other,) = await backend.enqueue([some_task(queue="other")])
        (task_id,) = await ended(backend)
        results = await backend.get_results([task_id, other])
        assert results[task_id] is not None
        assert results[other] is None
        assert reads == ["get_results"]


async def test_without_listeners_nothing_is_kept(tmp_path: Path, reads: list[str]) -> None:
    async with opened(tmp_path / "q.db") as backend:
        async with backend.listen("results"):
            ids = await ended(backend)
        assert (await backend.get_results(ids))[ids[0]] is not None
        ids = await ended(backend)
        assert (await backend.get_results(ids))[ids[0]] is not None
        assert reads == ["get_results"] * 2


async def test_what_was_pruned_meanwhile_is_not_handed_out(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend, backend.listen("results"):
        ids = await ended(backend)
        assert await backend.prune(0.0) == 1
        assert await backend.get_results(ids) == {}


async def test_many_at_once_are_left_to_the_store(tmp_path: Path, reads: list[str]) -> None:
    async with opened(tmp_path / "q.db") as backend, backend.listen("results"):
        ids = await ended(backend, 100)
        assert len(await backend.get_results(ids)) == 100
        assert reads == ["get_results"]
