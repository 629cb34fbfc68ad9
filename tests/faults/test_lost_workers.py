"""Workers that die, stand still or kill themselves: their tasks run again, and count once."""

from __future__ import annotations

import signal
import time

import anyio
import pytest

from sitq import TaskQueue, call
from tests.faults import programs
from tests.faults.conftest import EACH
from tests.faults.places import backend_at
from tests.faults.processes import Processes, counts, enqueue, query, wait_for_status
from tests.timing import quickest


def test_a_dead_workers_task_runs_again_within_its_lease_and_a_second(processes: Processes) -> None:
    bound = 1.0 + 1.0 + 0.5  # lease + 1 s, and half a second to see it in the log
    assert quickest(lambda: seconds_to_restart(processes), bound) < bound
    assert set(counts(processes)) == {(2, 1, 1)}


def seconds_to_restart(processes: Processes) -> float:
    """How long it takes from a worker's death to the start of its task in another one."""
    task_id = enqueue(processes.place, programs.linger, 60.0)
    first = processes.start("worker")
    first.wait_for("start")
    second = processes.start("worker")
    second.wait_for("ready")
    first.kill()
    killed = time.monotonic()
    second.wait_for("start")
    took = time.monotonic() - killed
    wait_for_status(processes.place, task_id, "success")
    assert second.finish() == 0
    return took


def test_a_task_that_blocks_the_loop_for_three_leases_runs_once(processes: Processes) -> None:
    task_id = enqueue(processes.place, programs.block, 3.5)
    first = processes.start("worker")
    first.wait_for("start")
    second = processes.start("worker")
    first.wait_for("end")
    wait_for_status(processes.place, task_id, "success")
    assert (first.finish(), second.finish()) == (0, 0)
    assert second.lines("start") == []
    assert counts(processes) == [(1, 1, 0)]


@pytest.mark.parametrize("processes", EACH, indirect=True, ids="-".join)
def test_a_worker_stopped_beyond_its_lease_changes_nothing_when_it_wakes(
    processes: Processes,
) -> None:
    seconds = 1.5
    task_id = enqueue(processes.place, programs.linger, seconds)
    first = processes.start("worker")
    ((_, began),) = first.wait_for("began")
    first.signal(signal.SIGSTOP)
    second = processes.start("worker")
    second.wait_for("start")
    wait_for_status(processes.place, task_id, "success")
    time.sleep(max(0.0, float(began) + seconds - time.monotonic()))  # it wakes at its end
    before = query(processes.place, "SELECT * FROM tasks")
    first.signal(signal.SIGCONT)
    assert first.finish() == 0
    assert second.finish() == 0
    assert query(processes.place, "SELECT * FROM tasks") == before
    assert counts(processes) == [(2, 1, 1)]


def test_a_poison_task_ends_after_its_third_worker(processes: Processes) -> None:
    task_id = enqueue(processes.place, programs.poison)
    for _ in range(3):
        worker = processes.start("worker", lease=0.3, max_crashes=3)
        worker.wait_for("start")
        worker.kill()
    last = processes.start("worker", lease=0.3, max_crashes=3)
    wait_for_status(processes.place, task_id, "failed")
    assert last.finish() == 0
    assert last.lines("start") == []
    ((error,),) = query(processes.place, "SELECT error FROM tasks")
    assert "3 workers" in str(error)
    assert counts(processes) == [(3, 0, 3)]


def test_a_poison_task_takes_few_innocent_ones_along(processes: Processes) -> None:
    """Tasks reserved ahead die with their worker once; after that nobody holds them ahead."""

    async def fill() -> None:
        async with TaskQueue(backend_at(processes.place)) as queue:
            await queue.enqueue_many([call(programs.quick)] * 200)
            await queue.enqueue(programs.poison)
            await queue.enqueue_many([call(programs.quick)] * 1000)

    anyio.run(fill)
    for _ in range(4):
        worker = processes.start("worker", lease=0.3, max_crashes=3)
        worker.wait_for("ready")
        while worker.popen.poll() is None and query(processes.place, OPEN) != [(0,)]:
            time.sleep(0.02)
    failed = query(processes.place, "SELECT function FROM tasks WHERE status = 'failed'")
    assert query(processes.place, OPEN) == [(0,)]
    assert ("tests.faults.programs:poison",) in failed
    assert len(failed) <= 8, len(failed)  # with what ran beside it, or was not stored yet


OPEN = "SELECT count(*) FROM tasks WHERE finished_at IS NULL"
