"""What tests of processes that die share: how they die, what is left, and how that is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import anyio

from sitq import TaskQueue, Worker, call
from sitq.testing import FakeClock
from tests.faults import programs
from tests.faults.breaking import point
from tests.faults.places import Place, backend_at
from tests.faults.processes import Processes, query

__all__ = [
    "AGAIN",
    "LOOPS",
    "NEW",
    "ONCE",
    "RUNNING",
    "Crash",
    "State",
    "alternating",
    "die",
    "drain",
    "fill",
    "finish_the_work",
    "reserve",
    "states",
]

State = tuple[str, int, int, int]  # status, epoch, attempts, crashes

NEW: State = ("pending", 0, 0, 0)
RUNNING: State = ("in_progress", 1, 1, 0)
ONCE: State = ("success", 1, 1, 0)
AGAIN: State = ("success", 2, 1, 1)

LOOPS = ["asyncio", "trio"]


class Crash(NamedTuple):
    """A point, and what is expected of the tasks: when the process died, and in the end."""

    name: str
    functions: Sequence[Callable[[], object]]
    role: str
    place: str
    text: str
    found: list[State]
    after: list[State]


def alternating(crashes: Sequence[Crash]) -> list[tuple[str, Crash]]:
    """Each on one of the loops, "before" on one and "after" on the other; all in a soak."""
    return [
        (loop, crash)
        for number, crash in enumerate(crashes)
        for place, loop in enumerate(LOOPS)
        if "SITQ_SOAK" in os.environ or (number + place) % 2 == 0
    ]


def states(place: Place) -> list[State]:
    """What became of each task; the store is whole."""
    leases = "SELECT epoch FROM tasks WHERE lease_end IS NOT NULL ORDER BY seq"
    if isinstance(place, Path):
        assert query(place, "PRAGMA integrity_check") == [("ok",)]
        assert query(place, "PRAGMA foreign_key_check") == []
        leases = "SELECT epoch FROM leases ORDER BY seq"
    sql = "SELECT status, epoch, attempts, crashes FROM tasks ORDER BY seq"
    found = [(str(a), int(str(b)), int(str(c)), int(str(d))) for a, b, c, d in query(place, sql)]
    assert query(place, leases) == [(state[1],) for state in found if state[0] == "in_progress"]
    return found


def die(processes: Processes, role: str, place: str, text: str, **settings: float) -> None:
    """Have a process die at a point, and make sure that it died there."""
    process = processes.start(role, point("die", place, text), (), **settings)
    process.wait_for("broken")
    assert process.popen.wait(20) == 9


def fill(processes: Processes, *functions: Callable[[], object]) -> None:
    """Enqueue one task of each function."""

    async def main() -> None:
        async with TaskQueue(backend_at(processes.place)) as queue:
            await queue.enqueue_many([call(function) for function in functions])

    anyio.run(main)


def reserve(processes: Processes, limit: int) -> None:
    """Reserve tasks for a worker that will never be heard of again."""

    async def main() -> None:
        backend = backend_at(processes.place)
        await backend.open()
        assert len((await backend.reserve("gone", ["default"], limit, 30.0)).tasks) == limit
        await backend.close()

    anyio.run(main)


async def drain(place: Place, folder: Path) -> list[list[str]]:
    """Run all that is left in this process; what its log says of the starts."""
    log = folder / "final.log"
    programs.LOG = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    backend = backend_at(place)
    await backend.open()
    with anyio.fail_after(60):
        while query(place, "SELECT 1 FROM tasks WHERE finished_at IS NULL LIMIT 1"):
            await backend.sweep(max_crashes=1000)
            await Worker(backend, queues="*", max_concurrency=50).drain()
            await anyio.sleep(0.05)
    await backend.close()
    os.close(programs.LOG)
    return [line.split()[1:] for line in log.read_text().splitlines()]


def finish_the_work(processes: Processes) -> list[State]:
    """Let the leases of the dead end, and run what is left on the same loop."""

    async def main() -> None:
        later = FakeClock(datetime.now(UTC) + timedelta(minutes=1))
        backend = backend_at(processes.place, clock=later)
        await backend.open()
        await backend.sweep(max_crashes=3)
        await backend.close()
        with anyio.fail_after(20):
            while query(processes.place, "SELECT 1 FROM tasks WHERE finished_at IS NULL"):
                await Worker(backend_at(processes.place)).drain()

    programs.LOG = os.open(os.devnull, os.O_WRONLY)
    try:
        anyio.run(main, backend=processes.loop)
    finally:
        os.close(programs.LOG)
    return states(processes.place)
