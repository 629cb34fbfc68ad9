"""SIGKILL to real processes at random: nothing is lost, and each task has one outcome."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import anyio
import pytest

from tests.faults.conftest import EACH, LONG
from tests.faults.crashes import drain
from tests.faults.processes import Processes, check_total

SECONDS = float(os.environ.get("SITQ_KILL_SECONDS", "5"))
SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


@pytest.mark.parametrize("processes", EACH, indirect=True, ids="-".join)
@pytest.mark.timeout(SECONDS + 120)
def test_random_kills_lose_nothing_and_accept_one_outcome_each(processes: Processes) -> None:
    is_bridged = processes.loop == "trio" and not isinstance(processes.place, Path)
    seconds = min(SECONDS, 2.5) if is_bridged and not LONG else SECONDS
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {seconds:g} s")
    chance = random.Random(SEED)
    roles = ["producer", "worker", "worker", "producer"]
    started = [processes.start(role) for role in roles]
    started[0].wait_for("ready")
    end, kills = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.02, 0.5))
        place = chance.randrange(len(started))
        started[place].kill()
        kills += 1
        started[place] = processes.start(roles[place])
    # On a slow machine the kills may have left no process the time to do anything.
    for word, process in (("acknowledged", started[0]), ("start", started[1])):
        if not processes.lines(word):
            process.wait_for(word)
    processes.kill_all()
    final = anyio.run(drain, processes.place, processes.folder)
    acknowledged = {line[0] for line in processes.lines("acknowledged")}
    starts = processes.lines("start")
    figures = check_total(processes.place, acknowledged, starts + final)
    print({"kills": kills, "started by the processes": len(starts), **figures})
    assert figures["acknowledged"] > 0
    assert len(starts) > 0
    errors = [text for process in processes.started if "Traceback" in (text := process.stderr())]
    assert errors == []
