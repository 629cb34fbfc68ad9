"""Enqueue functions, run them with a worker, and read their typed results back.

python 01_end_to_end.py          runs on asyncio
python 01_end_to_end.py trio     runs the same code on trio
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio
from pydantic import BaseModel

from sitq import SQLiteBackend, TaskQueue, Worker

__all__ = ["Order", "add", "main", "total"]


class Order(BaseModel):
    """Arguments may be pydantic models: they arrive as what they were."""

    customer: str
    prices: list[float]


async def add(a: int, b: int) -> int:
    """Run on the worker's event loop."""
    await anyio.sleep(0.01)
    return a + b


def total(order: Order, *, discount: float = 0.0) -> float:
    """Run in a thread of the worker's."""
    return round(sum(order.prices) * (1 - discount), 2)


async def main(folder: Path) -> None:
    """Be the program that enqueues and the worker in one."""
    backend = SQLiteBackend(folder / "tasks.db")
    async with TaskQueue(backend) as queue:
        # The type checkers know what comes back: these are TaskId[int] and TaskId[float].
        sum_id = await queue.enqueue(add, 1, 2)
        total_id = await queue.enqueue(total, Order(customer="Ada", prices=[10, 5.5]), discount=0.1)
        print(f"enqueued: add is {(await queue.get_task(sum_id)).status}")

        # A worker usually runs until it is stopped; drain() runs what is due and returns.
        ran = await Worker(backend).drain()
        print(f"the worker ran {ran} tasks")

        sum_result = await queue.get_result(sum_id)
        total_result = await queue.get_result(total_id)
        if sum_result is not None and total_result is not None:
            print(f"add is {sum_result.status}: {queue.deserialize_result(sum_result)}")
            print(f"total is {total_result.status}: {queue.deserialize_result(total_result)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name), backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
