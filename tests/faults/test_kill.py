"""SIGKILL, SIGSTOP and SIGTERM against real processes: nothing lost, nothing done by a dead hand."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import anyio
import crew
import pytest
from crews import Member, check_total, query

from sitq import SQLiteBackend, TaskQueue, Worker

SECONDS = float(os.environ.get("SITQ_KILL_SECONDS", "15"))
SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


def enqueue(database: Path, function: object, *arguments: object, **options: object) -> str:
    async def main() -> str:
        async with TaskQueue(SQLiteBackend(database)) as queue:
            return await queue.options(**options).enqueue(function, *arguments)  # type: ignore[arg-type]

    return anyio.run(main)


def wait_for_status(database: Path, task_id: str, *statuses: str) -> str:
    give_up = time.monotonic() + 30
    while True:
        ((status,),) = query(database, f"SELECT status FROM tasks WHERE id = '{task_id}'")
        if status in statuses:
            return str(status)
        assert time.monotonic() < give_up, status
        time.sleep(0.02)


@LOOPS
@pytest.mark.timeout(SECONDS + 120)
def test_random_kills_lose_nothing_and_accept_one_outcome_each(loop: str, tmp_path: Path) -> None:
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {SECONDS:g} s on {loop}")
    chance = random.Random(SEED)
    database = tmp_path / "q.db"
    made = 0
    crew_members: list[Member] = []
    history: list[Member] = []

    def hire(role: str) -> Member:
        nonlocal made
        made += 1
        member = Member(role, loop, database, tmp_path / f"{role}-{made}.log")
        history.append(member)
        return member

    crew_members = [hire("producer"), hire("worker"), hire("worker"), hire("producer")]
    crew_members[0].wait_for("ready")
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.02, 0.5))
        place = chance.randrange(len(crew_members))
        role = "producer" if place in {0, 3} else "worker"
        crew_members[place].kill()
        kills += 1
        crew_members[place] = hire(role)
    for member in crew_members:
        member.kill()

    async def drain() -> None:
        crew.LOG = os.open(tmp_path / "final.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        backend = SQLiteBackend(database)
        await backend.open()
        with anyio.fail_after(60):
            while query(database, "SELECT 1 FROM tasks WHERE finished_at IS NULL LIMIT 1"):
                await backend.sweep(max_crashes=100_000)
                await Worker(backend, max_concurrency=50).drain()
                await anyio.sleep(0.05)
        await backend.close()
        os.close(crew.LOG)

    anyio.run(drain, backend=loop)
    acknowledged = {line[0] for each in history for line in each.lines("acknowledged")}
    starts = [line for each in history for line in each.lines("start")]
    starts += [line.split()[1:] for line in (tmp_path / "final.log").read_text().splitlines()]
    figures = check_total(database, acknowledged, starts)
    print({"kills": kills, **figures})
    assert figures["acknowledged"] > 0


@LOOPS
def test_a_dead_workers_task_runs_again_within_its_lease_and_a_second(
    loop: str, tmp_path: Path
) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.note, 3.0)
    first = Member("worker", loop, database, tmp_path / "1.log")
    first.wait_for("start")
    second = Member("worker", loop, database, tmp_path / "2.log")
    second.wait_for("ready")
    first.kill()
    killed = time.monotonic()
    second.wait_for("start")
    took = time.monotonic() - killed
    assert wait_for_status(database, task_id, "success") == "success"
    assert second.finish() == 0
    assert took < 1.0 + 1.0 + 0.5, took  # lease + 1 s, and half a second to see it in the log
    assert query(database, "SELECT epoch, attempts, crashes FROM tasks") == [(2, 1, 1)]


@LOOPS
def test_a_task_that_blocks_the_loop_for_three_leases_runs_once(loop: str, tmp_path: Path) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.block, 3.5)
    first = Member("worker", loop, database, tmp_path / "1.log")
    first.wait_for("start")
    second = Member("worker", loop, database, tmp_path / "2.log")
    first.wait_for("end")
    wait_for_status(database, task_id, "success")
    assert (first.finish(), second.finish()) == (0, 0)
    assert second.lines("start") == []
    assert query(database, "SELECT epoch, attempts, crashes FROM tasks") == [(1, 1, 0)]


@LOOPS
def test_a_worker_stopped_beyond_its_lease_changes_nothing_when_it_wakes(
    loop: str, tmp_path: Path
) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.note, 0.4)
    first = Member("worker", loop, database, tmp_path / "1.log")
    first.wait_for("start")
    first.signal(signal.SIGSTOP)
    second = Member("worker", loop, database, tmp_path / "2.log")
    second.wait_for("start")
    wait_for_status(database, task_id, "success")
    before = query(database, "SELECT * FROM tasks")
    first.signal(signal.SIGCONT)
    assert first.finish() == 0
    assert second.finish() == 0
    assert query(database, "SELECT * FROM tasks") == before
    assert query(database, "SELECT epoch, attempts, crashes FROM tasks") == [(2, 1, 1)]


@LOOPS
def test_a_poison_task_ends_after_its_third_worker(loop: str, tmp_path: Path) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.poison)
    for number in range(1, 4):
        worker = Member(
            "worker", loop, database, tmp_path / f"{number}.log", lease=0.3, max_crashes=3
        )
        worker.wait_for("start")
        worker.kill()
    last = Member("worker", loop, database, tmp_path / "last.log", lease=0.3, max_crashes=3)
    assert wait_for_status(database, task_id, "failed") == "failed"
    assert last.finish() == 0
    assert last.lines("start") == []
    ((crashes, attempts, error),) = query(database, "SELECT crashes, attempts, error FROM tasks")
    assert (crashes, attempts) == (3, 0)
    assert "3 workers" in str(error)


@LOOPS
@pytest.mark.parametrize("times", [1, 2, 5])
def test_sigterm_ends_a_worker_and_hands_back_what_runs(
    loop: str, times: int, tmp_path: Path
) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.note, 30.0)
    worker = Member("worker", loop, database, tmp_path / "1.log", shutdown_timeout=0.2)
    worker.wait_for("start")
    for _ in range(times):
        worker.signal(signal.SIGTERM)
        time.sleep(0.01)
    assert worker.finish() == 0
    assert wait_for_status(database, task_id, "pending") == "pending"
    assert query(database, "SELECT epoch, attempts, crashes FROM tasks") == [(1, 0, 0)]


@LOOPS
def test_a_task_that_swallows_its_cancellation_is_handed_back_all_the_same(
    loop: str, tmp_path: Path
) -> None:
    database = tmp_path / "q.db"
    task_id = enqueue(database, crew.swallow)
    worker = Member("worker", loop, database, tmp_path / "1.log", shutdown_timeout=0.1)
    worker.wait_for("start")
    worker.signal(signal.SIGTERM)
    worker.wait_for("swallowed")
    assert wait_for_status(database, task_id, "pending") == "pending"
    worker.kill()
