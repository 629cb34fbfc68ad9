"""Much work, and work for long: a deep backlog drains, memory and log stay bounded.

The long part runs with ``SITQ_SOAK=1`` only, for ``SITQ_SOAK_SECONDS`` (20 minutes unless set).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker, call
from tests.faults.processes import Process, Processes, query

SECONDS = float(os.environ.get("SITQ_SOAK_SECONDS", "1200"))
MIB = 1 << 20
DEPTH = 10_000


async def double(number: int) -> int:
    return 2 * number


@pytest.mark.anyio
async def test_a_backlog_of_ten_thousand_drains_and_every_result_is_there(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")
    async with TaskQueue(backend) as queue:
        start = time.perf_counter()
        ids = await queue.enqueue_many([call(double, number) for number in range(DEPTH)])
        stored = time.perf_counter()
        assert await Worker(backend, max_concurrency=50).drain() == DEPTH
        drained = time.perf_counter()
        results = await backend.get_results(ids)
        values = [queue.deserialize_result(result) for i in ids if (result := results[i])]
    assert values == [2 * number for number in range(DEPTH)]
    print(f"stored in {stored - start:.2f} s, drained in {drained - stored:.2f} s")


@pytest.fixture(params=["asyncio", "trio"])
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path)
    yield processes
    processes.kill_all()


def memory(process: Process) -> int:
    """The resident memory of a process, in bytes."""
    assert process.popen.poll() is None, process.stderr()
    pages = Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def rise(samples: list[tuple[float, int]]) -> float:
    """The slope of the line through the samples, per second (least squares)."""
    middle = sum(x for x, _ in samples) / len(samples)
    height = sum(y for _, y in samples) / len(samples)
    spread = sum((x - middle) ** 2 for x, _ in samples)
    return sum((x - middle) * (y - height) for x, y in samples) / spread


@pytest.mark.skipif("SITQ_SOAK" not in os.environ, reason="SITQ_SOAK=1 runs it, for 20 minutes")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.timeout(SECONDS + 120)
def test_memory_and_log_stay_bounded_while_the_work_goes_on(processes: Processes) -> None:
    """After a quarter of the time, less than 1 MiB more in 10 minutes; the log below 64 MiB."""
    log = processes.database.with_name("q.db-wal")
    started = {
        "worker": processes.start("worker", lease=30.0),
        "producer": processes.start("producer", result_ttl=10.0, pause=0.002),
    }
    for process in started.values():
        process.wait_for("ready")
    start, longest = time.monotonic(), 0
    samples: dict[str, list[tuple[float, int]]] = {role: [] for role in started}
    while (now := time.monotonic() - start) < SECONDS:
        longest = max(longest, log.stat().st_size)
        if now > SECONDS / 4:
            for role, process in started.items():
                samples[role].append((now, memory(process)))
        time.sleep(min(1.0, SECONDS / 100))
    done = len(started["worker"].lines("start"))
    slopes = {role: rise(points) * 600 / MIB for role, points in samples.items()}
    for role, points in samples.items():
        last = points[-1][1] / MIB
        print(f"{role}: {last:.1f} MiB, {slopes[role]:+.2f} MiB per 10 minutes")
    kept = query(processes.database, "SELECT count(*) FROM tasks")[0][0]
    print(f"{done} tasks in {SECONDS:g} s, {kept} kept, log {longest / MIB:.1f} MiB at most")
    assert longest < 64 * MIB
    assert done > 10 * SECONDS
    # A short run says little about ten minutes: it may take the same 1 MiB.
    limit = max(1.0, 600 / (SECONDS * 3 / 4))
    assert all(slope < limit for slope in slopes.values())
