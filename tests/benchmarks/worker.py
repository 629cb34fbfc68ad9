"""A worker in a process of its own: ``worker.py STORE LOOP [QUEUES]``, led through its input.

It says ``ready``, and works from the first line on. For each further line it tells the share of
a core that it has used since the last one, and how many tasks it has begun. It ends with its
input.
"""

from __future__ import annotations

import sys
import time

import anyio

from sitq import Worker
from tests.benchmarks import latencies, memory, workloads
from tests.benchmarks.measuring import run_on
from tests.benchmarks.stores import open_store

__all__: list[str] = []


async def main(store: str, queues: list[str]) -> None:
    """Work until the input ends."""
    worker = Worker(
        open_store(store),
        tasks=[workloads, latencies, memory],
        queues=queues,
        max_concurrency=100,
        poll_interval=60,
    )
    print("ready", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        print("working", flush=True)
        start, busy = time.perf_counter(), time.process_time()
        while await anyio.to_thread.run_sync(sys.stdin.readline):
            share = (time.process_time() - busy) / (time.perf_counter() - start)
            print(f"{share * 100:.3f} {workloads.begun()}", flush=True)
            start, busy = time.perf_counter(), time.process_time()
        await worker.stop()


if __name__ == "__main__":
    run_on(sys.argv[2], main, sys.argv[1], (sys.argv[3:] or ["default"])[0].split(","))
