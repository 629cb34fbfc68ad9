"""What the tasks of a test do that complete themselves, and what they find."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from sitq import Result, TaskQueue, Worker, current_task, task
from tests.transactions.kinds import Own
from tests.transactions.places import Place


class Scene:
    """What the tasks of a test find: their connection, and what they are to do."""

    own: Own
    place: Place
    between: Callable[[], Any]
    after: Callable[[], Any]
    seen: list[object]

    @classmethod
    def begin(cls, place: Place) -> None:
        """Forget what an earlier test wanted."""
        cls.place = place
        cls.between = staticmethod(nothing)
        cls.after = staticmethod(nothing)
        cls.seen = []


async def nothing() -> None:
    pass


@task
async def pay(amount: int) -> int:
    """Write, complete, commit."""
    own = Scene.own
    await own.write(f"paid {amount}")
    await Scene.between()
    await current_task().complete_in(own.given, amount)
    await own.commit()
    await Scene.after()
    return -1


@task
async def pay_and_forget(amount: int) -> int:
    """Roll back after the completion."""
    own = Scene.own
    Scene.seen.append(current_task().attempt)
    await own.write(f"paid {amount}")
    await current_task().complete_in(own.given, amount)
    await own.rollback()
    return amount


@asynccontextmanager
async def working(place: Place, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(place.backend(), **{"poll_interval": 3600.0, "lease": 5.0} | options)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        try:
            with anyio.fail_after(30):
                yield worker
        finally:
            with anyio.CancelScope(shield=True):
                await worker.stop()


async def outcome(queue: TaskQueue, task_id: str) -> Result[object]:
    result = await queue.get_result(task_id)
    assert result is not None
    return result
