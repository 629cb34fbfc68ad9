"""Open a database once, share it among tasks, and close it after the last of them."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio

from sitq import SQLiteBackend, TaskQueue, Worker, call, current_task, shared

__all__ = ["Shop", "main", "sell", "shop", "stock"]


class Shop:
    """Counts what is in stock; async and plain functions may use it at the same time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Make the table."""
        self._connection = connection
        self._lock = threading.Lock()
        connection.execute("CREATE TABLE stock (fruit TEXT PRIMARY KEY, number INTEGER)")
        connection.execute("INSERT INTO stock VALUES ('apple', 10), ('pear', 4)")

    def take(self, fruit: str, number: int) -> None:
        """Take some out of the stock."""
        with self._lock, self._connection:
            self._connection.execute(
                "UPDATE stock SET number = number - ? WHERE fruit = ?", (number, fruit)
            )

    def left(self, fruit: str) -> int:
        """Count what is left."""
        with self._lock:
            query = "SELECT number FROM stock WHERE fruit = ?"
            return int(self._connection.execute(query, (fruit,)).fetchone()[0])


@asynccontextmanager
async def shop() -> AsyncGenerator[Shop, None]:
    """Open the shop; the worker does it once, and hands what is yielded to its tasks."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        print("the shop opens")
        yield Shop(connection)
        print("the shop closes")


async def sell(fruit: str, number: int, at: Shop = shared(shop)) -> None:
    """Get the resource as a parameter, which is no argument of the task."""
    await anyio.sleep(0.01)
    at.take(fruit, number)


def stock(fruit: str) -> int:
    """Ask for the resource; it is the same object, also in a thread."""
    return current_task().shared(shop).left(fruit)


class FakeShop(Shop):
    """A shop for a test."""

    def __init__(self) -> None:
        """Sell nothing yet."""
        self.sold: list[tuple[str, int]] = []

    def take(self, fruit: str, number: int) -> None:
        """Note it."""
        self.sold.append((fruit, number))


async def main(folder: Path) -> None:
    """Sell, count, and test the function without a worker."""
    backend = SQLiteBackend(folder / "tasks.db")
    worker = Worker(backend, tasks=[sell, stock], resources=[shop])
    async with TaskQueue(backend) as queue, worker:
        sold = await queue.enqueue_many([call(sell, "apple", 3), call(sell, "pear", 1)])
        for task_id in sold:
            await queue.result(task_id, timeout=10)
        for fruit in ("apple", "pear"):
            left = await queue.result(await queue.enqueue(stock, fruit), timeout=10)
            print(f"{fruit}: {left} left")

    fake = FakeShop()
    await sell("plum", 1, at=fake)
    print(f"a test gives a shop of its own: {fake.sold}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name))
