"""A server that is killed with all of its processes while the work goes on: nothing is lost."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.faults.crashes import drain
from tests.faults.crews import Crew, check_total
from tests.postgres.servers import Server, new_schema

SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECONDS = 120.0 if "SITQ_SOAK" in os.environ else 1.5


@pytest.fixture(params=["asyncio", "trio"])
def company(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Iterator[Crew]:
    """Processes on one of the two loops, and a store on a server that may be broken."""
    company = Crew(request.param, tmp_path, place=f"{server.dsn}#{new_schema()}")
    yield company
    company.disband()


@pytest.mark.timeout(SECONDS + 90)
def test_a_killed_server_has_what_was_acknowledged_when_it_is_back(
    company: Crew, server: Server
) -> None:
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {SECONDS:g} s")
    chance = random.Random(SEED)
    members = [company.hire("producer", stubborn=1), company.hire("worker"), company.hire("worker")]
    for member in members:
        member.wait_for("ready")
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 1.0))
        server.kill()
        kills += 1
        time.sleep(chance.uniform(0, 0.3))
        server.start()
    count = len(company.lines("acknowledged"))
    members[0].wait_for("acknowledged", count + 1)  # it has outlived the last one
    members[0].kill()
    assert [member.finish() for member in members[1:]] == [0, 0]
    starts = company.lines("start")
    final = anyio.run(drain, company.place, company.folder)
    acknowledged = {line[0] for line in company.lines("acknowledged")}
    figures = check_total(company.place, acknowledged, starts + final)
    print({"kills": kills, "refused": len(company.lines("refused")), **figures})
    assert len(starts) > 0
    errors = [text for member in company.members if "Traceback" in (text := member.stderr())]
    assert errors == []
