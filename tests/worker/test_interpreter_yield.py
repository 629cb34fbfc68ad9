"""The pause in the worker's loop changes no result, and is off where it is of no use."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sitq import TaskQueue, Worker
from sitq.backends.memory import MemoryBackend
from sitq.backends.sqlite import SQLiteBackend
from sitq.protocols import Backend
from sitq.worker import _interpreter_yield
from sitq.worker._interpreter_yield import InterpreterYield

pytestmark = pytest.mark.anyio


async def add(left: int, right: int) -> int:
    return left + right


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_drain_runs_every_task_with_and_without_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    monkeypatch.setattr(_interpreter_yield, "ENABLED", enabled)
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        ids = [await queue.enqueue(add, number, 1) for number in range(50)]
        assert await Worker(backend, tasks=[add]).drain() == 50
        result = await queue.get_result(ids[7])
        assert result is not None
        assert queue.deserialize_result(result) == 8


@pytest.mark.parametrize(
    ("backend", "enabled", "pauses"),
    [
        (SQLiteBackend("q.db"), True, 8),
        (SQLiteBackend("q.db"), False, 0),
        (MemoryBackend(), True, 0),
    ],
)
def test_the_loop_pauses_only_for_a_thread_of_the_store_and_while_it_reserves(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, *, enabled: bool, pauses: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(_interpreter_yield, "ENABLED", enabled)
    monkeypatch.setattr(time, "sleep", slept.append)
    pause = InterpreterYield(backend)
    pause.end_turn()
    assert not slept
    with pause.reserving():
        for _ in range(100):
            pause.end_turn()
    pause.end_turn()
    assert len(slept) == pauses
