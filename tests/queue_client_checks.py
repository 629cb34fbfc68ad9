"""Tasks that enqueue through their worker's store, and checks of what they have stored."""

from __future__ import annotations

from sitq import TaskId, TaskQueue, Worker, call, current_task
from sitq.protocols import Backend

__all__ = ["check_both_clients", "double", "enqueue_async", "enqueue_plain"]


async def double(number: int) -> int:
    return 2 * number


async def enqueue_async() -> list[str]:
    client = current_task().queue_client
    return [
        await client.enqueue(double, 1),
        await client.options(priority=5).enqueue(double, number=2),
        *await client.enqueue_many([call(double, 3), call(double, 4)]),
    ]


def enqueue_plain() -> list[str]:
    client = current_task().sync_queue_client
    return [
        client.enqueue(double, 1),
        client.options(priority=5).enqueue(double, number=2),
        *client.enqueue_many([call(double, 3), call(double, 4)]),
    ]


async def check_both_clients(backend: Backend) -> None:
    """Check that an async and a plain function enqueue tasks that their worker runs."""
    async with TaskQueue(backend) as queue:
        parents = [await queue.enqueue(enqueue_async), await queue.enqueue(enqueue_plain)]
        assert await Worker(backend).drain() == 10
        for parent in parents:
            ids = [TaskId[int](text) for text in await queue.result(parent, timeout=20)]
            assert [await queue.result(each, timeout=20) for each in ids] == [2, 4, 6, 8]
            assert (await queue.get_task(ids[1])).priority == 5
