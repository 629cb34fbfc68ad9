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
from tests.faults.crews import Crew, check_total

SECONDS = float(os.environ.get("SITQ_KILL_SECONDS", "5"))
SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


@pytest.mark.parametrize("company", EACH, indirect=True, ids="-".join)
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
