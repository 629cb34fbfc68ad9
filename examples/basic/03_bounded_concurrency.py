"""Run many tasks, never more than a few at the same time."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import anyio

from sitq import SQLiteBackend, TaskQueue, Worker, call

__all__ = ["Gauge", "compress", "fetch", "main"]


class Gauge:
    """Counts what runs at the same time."""

    def __init__(self) -> None:
        """Start with nothing running."""
        self._lock = threading.Lock()
        self._running = 0
        self.most = 0

    def __enter__(self) -> None:
        """Count one in."""
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)

    def __exit__(self, *_: object) -> None:
        """Count one out."""
        with self._lock:
            self._running -= 1


GAUGE = Gauge()


async def fetch(page: int) -> int:
    """Wait as if for a network; async functions share the event loop."""
    with GAUGE:
        await anyio.sleep(0.05)
    return page


def compress(page: int) -> int:
    """Block as if for a disk; plain functions run in threads."""
    with GAUGE:
        time.sleep(0.05)
    return page


async def main(folder: Path) -> None:
    """Enqueue 40 tasks, all of them or none, and run them four at a time."""
    backend = SQLiteBackend(folder / "tasks.db")
    async with TaskQueue(backend) as queue:
        calls = [call(fetch, page) for page in range(20)]
        calls += [call(compress, page) for page in range(20)]
        task_ids = await queue.enqueue_many(calls)

        started = time.perf_counter()
        ran = await Worker(backend, max_concurrency=4).drain()
        seconds = time.perf_counter() - started

        results = [await queue.get_result(task_id) for task_id in task_ids]
        pages = sum(queue.deserialize_result(result) for result in results if result is not None)
    print(f"{ran} tasks ran, the sum of their pages is {pages}")
    print(f"at most {GAUGE.most} ran at the same time")
    print(f"one after the other takes at least 2 s; this took {seconds:.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name))
