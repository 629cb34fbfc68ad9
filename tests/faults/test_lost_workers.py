"""Workers that die, stand still or kill themselves: their tasks run again, and count once."""

from __future__ import annotations

import signal
import time

import anyio
import pytest

from sitq import TaskQueue, call
from tests.faults import crew
from tests.faults.conftest import EACH
from tests.faults.crews import Crew, counts, enqueue, query, wait_for_status
from tests.faults.places import backend_at
from tests.timing import quickest


def test_a_dead_workers_task_runs_again_within_its_lease_and_a_second(company: Crew) -> None:
    bound = 1.0 + 1.0 + 0.5  # lease + 1 s, and half a second to see it in the log
    assert quickest(lambda: seconds_to_restart(company), bound) < bound
    assert set(counts(company)) == {(2, 1, 1)}


def seconds_to_restart(company: Crew) -> float:
    """How long it takes from a worker's death to the start of its task in another one."""
    task_id = enqueue(company.place, crew.linger, 60.0)
    first = company.hire("worker")
    first.wait_for("start")
    second = company.hire("worker")
    second.wait_for("ready")
    first.kill()
    killed = time.monotonic()
    second.wait_for("start")
    took = time.monotonic() - killed
    wait_for_status(company.place, task_id, "success")
    assert second.finish() == 0
    return took


def test_a_task_that_blocks_the_loop_for_three_leases_runs_once(company: Crew) -> None:
    task_id = enqueue(company.place, crew.block, 3.5)
    first = company.hire("worker")
    first.wait_for("start")
    second = company.hire("worker")
    first.wait_for("end")
    wait_for_status(company.place, task_id, "success")
    assert (first.finish(), second.finish()) == (0, 0)
    assert second.lines("start") == []
    assert counts(company) == [(1, 1, 0)]


@pytest.mark.parametrize("company", EACH, indirect=True, ids="-".join)
def test_a_worker_stopped_beyond_its_lease_changes_nothing_when_it_wakes(company: Crew) -> None:
    seconds = 1.5
    task_id = enqueue(company.place, crew.linger, seconds)
    first = company.hire("worker")
    ((_, began),) = first.wait_for("began")
    first.signal(signal.SIGSTOP)
    second = company.hire("worker")
    second.wait_for("start")
    wait_for_status(company.place, task_id, "success")
    time.sleep(max(0.0, float(began) + seconds - time.monotonic()))  # it wakes at its end
    before = query(company.place, "SELECT * FROM tasks")
    first.signal(signal.SIGCONT)
    assert first.finish() == 0
    assert second.finish() == 0
    assert query(company.place, "SELECT * FROM tasks") == before
    assert counts(company) == [(2, 1, 1)]


def test_a_poison_task_ends_after_its_third_worker(company: Crew) -> None:
    task_id = enqueue(company.place, crew.poison)
    for _ in range(3):
        worker = company.hire("worker", lease=0.3, max_crashes=3)
        worker.wait_for("start")
        worker.kill()
    last = company.hire("worker", lease=0.3, max_crashes=3)
    wait_for_status(company.place, task_id, "failed")
    assert last.finish() == 0
    assert last.lines("start") == []
    ((error,),) = query(company.place, "SELECT error FROM tasks")
    assert "3 workers" in str(error)
    assert counts(company) == [(3, 0, 3)]


def test_a_poison_task_takes_few_innocent_ones_along(company: Crew) -> None:
    """Tasks reserved ahead die with their worker once; after that nobody holds them ahead."""

    async def fill() -> None:
        async with TaskQueue(backend_at(company.place)) as queue:
            await queue.enqueue_many([call(crew.quick)] * 200)
            await queue.enqueue(crew.poison)
            await queue.enqueue_many([call(crew.quick)] * 1000)

    anyio.run(fill)
    for _ in range(4):
        worker = company.hire("worker", lease=0.3, max_crashes=3)
        worker.wait_for("ready")
        while worker.process.poll() is None and query(company.place, OPEN) != [(0,)]:
            time.sleep(0.02)
    failed = query(company.place, "SELECT function FROM tasks WHERE status = 'failed'")
    assert query(company.place, OPEN) == [(0,)]
    assert ("tests.faults.crew:poison",) in failed
    assert len(failed) <= 8, len(failed)  # with what ran beside it, or was not stored yet


OPEN = "SELECT count(*) FROM tasks WHERE finished_at IS NULL"
