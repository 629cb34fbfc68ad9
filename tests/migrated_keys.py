"""What both stores do with the unique keys of tasks that a store of the first format holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.ids import TaskId, new_task_id
from sitq.models import Task

if TYPE_CHECKING:
    from sitq.protocols import Backend


async def check_keys(backend: Backend, waits: str, runs: str, asked: str, ended: str) -> None:
    """Open a migrated store, and check which of its tasks hold their ids as unique keys.

    Args:
        backend: its store has four tasks, each with its id as its unique key.
        waits: is pending.
        runs: is in progress.
        asked: is in progress, and is asked to end.
        ended: has failed.
    """
    await backend.open()
    fresh = [
        Task(id=new_task_id(), function="tests:nothing", payload=b"\x90", unique_key=key)
        for key in (waits, runs, asked, ended)
    ]
    assert await backend.enqueue(fresh) == [waits, runs, fresh[2].id, fresh[3].id]
    stored = await backend.load_task(TaskId(asked))
    assert (stored.unique_key, stored.unique_until) == (asked, "end")
    reserved = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert [task.id for task in reserved] == [waits, fresh[2].id, fresh[3].id]
    await backend.close()
