"""A process that is stopped inside a user's transaction holds the task, and nothing more."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sitq import TaskQueue, call
from tests.faults import programs
from tests.faults.crashes import AGAIN, ONCE, State
from tests.faults.places import backend_at
from tests.faults.processes import Processes, check_total, query


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path, "postgres")
    yield processes
    processes.kill_all()


@pytest.mark.parametrize(
    ("processes", "end", "state"),
    [("asyncio", signal.SIGCONT, ONCE), ("trio", signal.SIGKILL, AGAIN)],
    indirect=["processes"],
)
def test_a_process_stopped_between_completion_and_commit_blocks_no_other(
    processes: Processes, end: signal.Signals, state: State
) -> None:
    """The task is nobody else's until the process goes on or dies, however long that takes."""
    place = str(processes.place)

    async def fill() -> set[str]:
        async with TaskQueue(backend_at(place)) as queue:
            await anyio.to_thread.run_sync(query, place, "CREATE TABLE notes (text TEXT)")
            first = await queue.options(priority=9).enqueue(
                programs.complete, place, "stands still"
            )
            return {first, *await queue.enqueue_many([call(programs.note, 0.001)] * 20)}

    acknowledged = anyio.run(fill)
    stopped = processes.start("worker")
    stopped.wait_for("broken")
    other = processes.start("worker")
    give_up = time.monotonic() + 20
    rest = "SELECT epoch, lease_end < now() FROM tasks WHERE finished_at IS NULL"
    while query(place, rest) != [(1, True)]:  # all others are done, and its lease is over
        assert time.monotonic() < give_up
        time.sleep(0.02)
    time.sleep(0.6)  # a look of the other worker's for what it may take back
    assert query(place, rest) == [(1, True)]
    stopped.signal(end)
    while query(place, rest):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    for process in processes.started if end is signal.SIGCONT else [other]:
        assert process.finish() == 0
    found = query(place, "SELECT status, epoch, attempts, crashes FROM tasks WHERE priority = 9")
    assert found == [state]
    assert query(place, "SELECT text FROM notes") == [("paid",)]
    check_total(processes.place, acknowledged, processes.lines("start"))
