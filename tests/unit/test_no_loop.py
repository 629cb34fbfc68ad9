"""What an async method says where no event loop runs, and what all say under gevent."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue, UsageError, Worker
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from tests.unit.queue_support import add

SOME_ID = "0190f5e2-7c3a-7bbb-8000-0123456789ab"
CALLS: dict[str, Callable[[Backend], Coroutine[Any, Any, object]]] = {
    "connect": lambda backend: TaskQueue(backend).connect(),
    "enqueue": lambda backend: TaskQueue(backend).enqueue(add, 1, 2),
    "get_result": lambda backend: TaskQueue(backend).get_result(SOME_ID),
    "get_task": lambda backend: TaskQueue(backend).get_task(SOME_ID),
    "cancel": lambda backend: TaskQueue(backend).cancel(SOME_ID),
    "start": lambda backend: Worker(backend).start(),
    "drain": lambda backend: Worker(backend).drain(),
    "async with": lambda backend: Worker(backend).__aenter__(),
}


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """A store of either kind, not open."""
    return MemoryBackend() if request.param == "memory" else SQLiteBackend(tmp_path / "q.db")


@pytest.fixture
def gevent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have gevent seem to have patched some modules."""

    def patch(*patched: str) -> None:
        fake: Any = types.ModuleType("gevent.monkey")
        fake.is_module_patched = set(patched).__contains__
        monkeypatch.setitem(sys.modules, "gevent.monkey", fake)

    return patch


@pytest.mark.parametrize("name", CALLS)
def test_an_async_method_that_no_loop_runs_says_what_to_do(backend: Backend, name: str) -> None:
    call = CALLS[name](backend)
    with pytest.raises(UsageError, match=r"no event loop .* runs in this thread.*SyncTaskQueue"):
        call.send(None)


@pytest.mark.anyio
@pytest.mark.parametrize("name", CALLS)
async def test_an_async_method_is_refused_where_gevent_has_patched_threads(
    backend: Backend, name: str, gevent: Callable[..., None]
) -> None:
    gevent("socket", "threading", "select", "queue")
    with pytest.raises(UsageError, match=r"gevent\.monkey has patched threading, select, queue.*"):
        await CALLS[name](backend)


@pytest.mark.parametrize("patched", ["threading", "select", "queue"])
def test_a_queue_without_a_loop_is_refused_with_any_part_of_it_patched(
    backend: Backend, patched: str, gevent: Callable[..., None]
) -> None:
    gevent("socket", patched)
    with pytest.raises(UsageError, match=f"patched {patched} in this process: use sitq in"):
        SyncTaskQueue(backend).connect()


def test_what_gevent_has_left_alone_is_no_reason(
    backend: Backend, gevent: Callable[..., None]
) -> None:
    gevent("socket", "ssl", "time")
    with SyncTaskQueue(backend) as queue:
        assert queue.enqueue(add, 1, 2)
