"""The memory backend's users: one loop at a time, one process, open or not."""

from __future__ import annotations

import asyncio
import os

import anyio
import pytest

from sitq.backends.memory import MemoryBackend
from sitq.errors import UsageError
from sitq.ids import new_task_id
from sitq.models import Task


@pytest.mark.anyio
async def test_a_fork_may_not_use_what_its_parent_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child process, every operation of an open instance is refused."""
    backend = MemoryBackend()
    await backend.open()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(UsageError, match="fork"):
        await backend.enqueue([])
    with pytest.raises(UsageError, match="fork"):
        await backend.open()
    monkeypatch.undo()
    assert await backend.enqueue([]) == []
    await backend.close()


@pytest.mark.anyio
async def test_a_closed_backend_gives_no_lease_keeper() -> None:
    """A lease keeper needs a backend that is open."""
    backend = MemoryBackend()
    with pytest.raises(UsageError, match="not open"):
        backend.lease_keeper()
    await backend.open()
    backend.lease_keeper().close()
    await backend.close()
    with pytest.raises(UsageError, match="not open"):
        backend.lease_keeper()


def test_a_loop_that_ended_leaves_no_listener_behind() -> None:
    """After a loop was closed around a waiting listener, another loop opens and enqueues."""
    backend = MemoryBackend()
    waiting: list[asyncio.Task[None]] = []

    async def listen() -> None:
        async with backend.listen("tasks") as listener:
            await listener.wait()

    async def leave_a_listener() -> None:
        await backend.open()
        waiting.append(asyncio.create_task(listen()))
        await anyio.wait_all_tasks_blocked()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_listener())
    loop.close()

    async def enqueue() -> int:
        await backend.open()
        ids = await backend.enqueue([Task(id=new_task_id(), function="m:f", payload=b"")])
        await backend.close()
        return len(ids)

    assert anyio.run(enqueue) == 1
    assert not waiting[0].done()


@pytest.mark.anyio
async def test_a_listener_hears_of_changes_after_a_reopening() -> None:
    """In the same loop, a listener outlives the last close."""
    backend = MemoryBackend()
    await backend.open()
    async with backend.listen("tasks") as listener:
        await backend.close()
        await backend.open()
        await backend.enqueue([Task(id=new_task_id(), function="m:f", payload=b"")])
        with anyio.fail_after(20):
            await listener.wait()
    await backend.close()
