"""SIGKILL, SIGSTOP and SIGTERM to real processes: nothing lost, nothing done by a dead hand."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from sitq import TaskQueue, call
from tests.faults import crew
from tests.faults.crashes import drain
from tests.faults.crews import Crew, Member, check_total
from tests.faults.places import Place, backend_at, query

SECONDS = float(os.environ.get("SITQ_KILL_SECONDS", "5"))
SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


LONG = "SITQ_SOAK" in os.environ
BRIDGED = ("trio", "postgres")
KINDS = [("asyncio", "sqlite"), ("trio", "sqlite"), ("asyncio", "postgres")]
# What is special about that one is the bridge, which the other tests of the store cross too.
EACH = [*KINDS, BRIDGED]


@pytest.fixture(params=EACH if LONG else KINDS, ids="-".join)
def company(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    """Processes on one of the two loops, and one of the stores."""
    company = Crew(request.param[0], tmp_path, request.param[1])
    yield company
    company.disband()


def enqueue(database: Place, function: Callable[..., object], *arguments: object) -> str:
    async def main() -> str:
        async with TaskQueue(backend_at(database)) as queue:
            return await queue.enqueue(function, *arguments)

    return anyio.run(main)


def wait_for_status(database: Place, task_id: str, *statuses: str) -> str:
    give_up = time.monotonic() + 30
    while True:
        ((status,),) = query(database, f"SELECT status FROM tasks WHERE id = '{task_id}'")
        if status in statuses:
            return str(status)
        assert time.monotonic() < give_up, status
        time.sleep(0.02)


on_each = pytest.mark.parametrize("company", EACH, indirect=True, ids="-".join)


@on_each
@pytest.mark.timeout(SECONDS + 120)
def test_random_kills_lose_nothing_and_accept_one_outcome_each(company: Crew) -> None:
    is_bridged = company.loop == "trio" and not isinstance(company.place, Path)
    seconds = min(SECONDS, 2.5) if is_bridged and not LONG else SECONDS
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {seconds:g} s")
    chance = random.Random(SEED)
    roles = ["producer", "worker", "worker", "producer"]
    members = [company.hire(role) for role in roles]
    members[0].wait_for("ready")
    end, kills = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.02, 0.5))
        place = chance.randrange(len(members))
        members[place].kill()
        kills += 1
        members[place] = company.hire(roles[place])
    # On a slow machine the kills may have left no member the time to do anything.
    for word, member in (("acknowledged", members[0]), ("start", members[1])):
        if not company.lines(word):
            member.wait_for(word)
    company.disband()
    final = anyio.run(drain, company.place, company.folder)
    acknowledged = {line[0] for line in company.lines("acknowledged")}
    starts = company.lines("start")
    figures = check_total(company.place, acknowledged, starts + final)
    print({"kills": kills, "started by the crew": len(starts), **figures})
    assert figures["acknowledged"] > 0
    assert len(starts) > 0
    errors = [text for member in company.members if "Traceback" in (text := member.stderr())]
    assert errors == []


def test_a_dead_workers_task_runs_again_within_its_lease_and_a_second(company: Crew) -> None:
    task_id = enqueue(company.place, crew.note, 3.0)
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
    assert took < 1.0 + 1.0 + 0.5, took  # lease + 1 s, and half a second to see it in the log
    assert counts(company) == [(2, 1, 1)]


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


@on_each
def test_a_worker_stopped_beyond_its_lease_changes_nothing_when_it_wakes(company: Crew) -> None:
    task_id = enqueue(company.place, crew.note, 0.4)
    first = company.hire("worker")
    first.wait_for("start")
    first.signal(signal.SIGSTOP)
    second = company.hire("worker")
    second.wait_for("start")
    wait_for_status(company.place, task_id, "success")
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


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize(("function", "seconds"), [(crew.note, 30.0), (crew.note_in_thread, 2.0)])
def test_sigterm_ends_a_worker_and_hands_back_what_runs(
    company: Crew, function: Callable[[float], object], seconds: float, times: int
) -> None:
    """What a thread returns after that changes nothing; Python waits for it at the exit."""
    task_id = enqueue(company.place, function, seconds)
    worker = company.hire("worker", shutdown_timeout=0.2)
    worker.wait_for("start")
    terminate(worker, times)
    wait_for_status(company.place, task_id, "pending")
    assert worker.process.wait(20) == 0
    assert counts(company) == [(1, 0, 0)]


@pytest.mark.parametrize("times", [1, 5])
def test_sigterm_is_heard_once_a_task_lets_the_loop_go(company: Crew, times: int) -> None:
    task_id = enqueue(company.place, crew.block, 0.5)
    worker = company.hire("worker", shutdown_timeout=0.2)
    worker.wait_for("start")
    for _ in range(times):
        worker.signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    wait_for_status(company.place, task_id, "success")
    assert counts(company) == [(1, 1, 0)]


@pytest.mark.parametrize("times", [1, 5])
def test_a_task_that_swallows_its_cancellation_is_handed_back_all_the_same(
    company: Crew, times: int
) -> None:
    task_id = enqueue(company.place, crew.swallow)
    worker = company.hire("worker", shutdown_timeout=0.1)
    worker.wait_for("start")
    terminate(worker, times)
    worker.wait_for("swallowed")
    wait_for_status(company.place, task_id, "pending")


def terminate(worker: Member, times: int) -> None:
    """Send SIGTERM so often, each once the one before was heard."""
    for number in range(times):
        worker.signal(signal.SIGTERM)
        worker.wait_for("term", number + 1)


def counts(company: Crew) -> list[tuple[object, ...]]:
    """Epoch, attempts and crashes of each task."""
    return query(company.place, "SELECT epoch, attempts, crashes FROM tasks")
