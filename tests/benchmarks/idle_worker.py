"""A worker in a process of its own: ``idle_worker.py DATABASE``; ends when its input does."""

from __future__ import annotations

import sys
import time

import anyio

from sitq import SQLiteBackend, Worker
from tests.benchmarks import workloads


async def main(path: str) -> None:
    """Run until the input ends; tell then how busy the processor was."""
    worker = Worker(SQLiteBackend(path), tasks=[workloads], poll_interval=60)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        print("ready", flush=True)
        start, busy = time.perf_counter(), time.process_time()
        await anyio.to_thread.run_sync(sys.stdin.readline)
        share = (time.process_time() - busy) / (time.perf_counter() - start)
        print(f"{share * 100:.3f}", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        await worker.stop()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
