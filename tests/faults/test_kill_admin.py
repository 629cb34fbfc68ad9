"""SIGKILL while queues are paused, failed tasks repeated, and workers told to stop.

Nothing is lost or doubled, a pause that was acknowledged holds, and each failed task is repeated
at most once.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from sitq import Admin
from tests.faults.crashes import drain
from tests.faults.places import Place, backend_at
from tests.faults.processes import Process, Processes, query
from tests.faults.programs import QUEUES

SECONDS = float(os.environ.get("SITQ_KILL_SECONDS", "2"))
SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ROLES = ["mixed_producer", "admin", "obedient_worker", "obedient_worker"]


@pytest.mark.timeout(SECONDS + 120)
def test_kills_while_an_admin_acts_lose_and_double_nothing(processes: Processes) -> None:
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {SECONDS:g} s")
    chance = random.Random(SEED)
    started = [processes.start(role) for role in ROLES]
    for process in started:
        process.wait_for("ready")
    end = time.monotonic() + SECONDS
    kills = stops = 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.05, 0.4))
        place = chance.randrange(len(started))
        stopped = [each for each in range(len(started)) if started[each].popen.poll() is not None]
        for each in stopped:
            assert started[each].popen.returncode == 0, started[each].stderr()
            started[each] = processes.start(ROLES[each])
        stops += len(stopped)
        # Few die before they have begun, or nothing would happen on a slow machine.
        if started[place].lines("ready") or chance.random() < 0.1:
            started[place].kill()
            kills += 1
            started[place] = processes.start(ROLES[place])
    wait_for_each(processes, started)
    processes.kill_all()
    anyio.run(resume_all, processes.place)
    final = anyio.run(drain, processes.place, processes.folder)
    check_tasks(processes, processes.lines("start") + final)
    check_repetitions(processes.place)
    checked = check_pauses(processes)
    repeated = sum(int(line[0]) for line in processes.lines("repeated"))
    print({"kills": kills, "stops": stops, "repeated": repeated, **checked})
    for process in processes.started:
        text = process.stderr()
        assert text.count("Traceback") == text.count("ValueError: no luck\n"), text


def wait_for_each(processes: Processes, started: list[Process]) -> None:
    """On a slow machine the kills may have left no process the time to do anything."""
    for word, place in (("acknowledged", 0), ("paused", 1), ("repeated", 1)):
        if not processes.lines(word):
            started[place].wait_for(word)


async def resume_all(place: Place) -> None:
    async with Admin(backend_at(place)) as admin:
        for name in QUEUES:
            await admin.resume_queue(name)


def check_tasks(processes: Processes, starts: list[list[str]]) -> None:
    """Each acknowledged task has one end, and each epoch ran once."""
    place = processes.place
    if isinstance(place, Path):
        assert query(place, "PRAGMA integrity_check") == [("ok",)]
        assert query(place, "SELECT count(*) FROM leases") == [(0,)]
    rows = query(place, "SELECT id, status, epoch, attempts, function FROM tasks")
    acknowledged = {line[0] for line in processes.lines("acknowledged")}
    assert acknowledged
    assert acknowledged <= {row[0] for row in rows}
    started = Counter((task_id, int(epoch)) for task_id, epoch in starts)
    assert [key for key, times in started.items() if times > 1] == []
    epochs = {row[0]: row[2] for row in rows}
    assert [key for key in started if key[1] > epochs[key[0]]] == []
    for task_id, status, epoch, attempts, function in rows:
        assert status == ("failed" if function.endswith(":fail_noted") else "success")
        assert attempts == 1, task_id
        assert (task_id, epoch) in started


def check_repetitions(place: Place) -> None:
    """A failed task has one repetition at most, which it names."""
    rows = query(place, "SELECT id, status, retry_of, retried_as FROM tasks")
    repetitions = [(row[2], row[0]) for row in rows if row[2] is not None]
    assert sorted(repetitions) == sorted((row[0], row[3]) for row in rows if row[3] is not None)
    assert len(dict(repetitions)) == len(repetitions)
    assert {row[1] for row in rows if row[3] is not None} <= {"failed"}


def check_pauses(processes: Processes) -> dict[str, int]:
    """No attempt was reserved between the acknowledgement of a pause and its end."""
    seconds = "{}" if isinstance(processes.place, str) else "{} / 1e6"
    moment = "extract(epoch FROM {})" if isinstance(processes.place, str) else "{}"
    joined = "tasks.id = attempts.task_id"
    if isinstance(processes.place, Path):
        joined = "tasks.seq = attempts.seq"
    sql = f"""
        SELECT queue, {seconds.format(moment.format("tasks.started_at"))} FROM tasks
        UNION ALL
        SELECT queue, {seconds.format(moment.format("attempts.started_at"))}
        FROM attempts JOIN tasks ON {joined}"""
    starts = [(str(queue), float(at)) for queue, at in query(processes.place, sql)]
    number = 0
    for name in QUEUES:
        for begin, end in pauses(processes, name):
            number += 1
            meanwhile = [at for queue, at in starts if queue == name and begin < at < end]
            assert meanwhile == [], (name, begin, end)
    return {"attempts": len(starts), "pauses": number}


def pauses(processes: Processes, name: str) -> list[tuple[float, float]]:
    """From when to when a queue was paused for sure; one admin comes after the other."""
    found: list[tuple[float, float]] = []
    begin, end = 0.0, 0.0
    for process in processes.started:
        for line in process.log.read_text().splitlines() if process.log.exists() else ():
            word, *rest = line.split()
            if word not in {"pausing", "paused", "resuming"} or rest[0] != name:
                continue
            found.append((begin, min(end, float(rest[1]))))
            begin = end = float(rest[1])
            if word == "paused":
                end = float(rest[2])
    return [(begin, end) for begin, end in found if begin < end]
