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
from tests.faults.processes import Processes, check_total
from tests.postgres.servers import Server, new_schema

SEED = int(os.environ.get("SITQ_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECONDS = 120.0 if "SITQ_SOAK" in os.environ else 1.5


@pytest.fixture(params=["asyncio", "trio"])
def processes(
    request: pytest.FixtureRequest, tmp_path: Path, server: Server
) -> Iterator[Processes]:
    """Processes on one of the two loops, and a store on a server that may be broken."""
    processes = Processes(request.param, tmp_path, place=f"{server.dsn}#{new_schema()}")
    yield processes
    processes.kill_all()


@pytest.mark.timeout(SECONDS + 90)
def test_a_killed_server_has_what_was_acknowledged_when_it_is_back(
    processes: Processes, server: Server
) -> None:
    print(f"\nseed {SEED} (SITQ_KILL_SEED), {SECONDS:g} s")
    chance = random.Random(SEED)
    started = [
        processes.start("producer", stubborn=1),
        processes.start("worker"),
        processes.start("worker"),
    ]
    for process in started:
        process.wait_for("ready")
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 1.0))
        server.kill()
        kills += 1
        time.sleep(chance.uniform(0, 0.3))
        server.start()
    count = len(processes.lines("acknowledged"))
    started[0].wait_for("acknowledged", count + 1)  # it has outlived the last one
    started[0].kill()
    assert [process.finish() for process in started[1:]] == [0, 0]
    starts = processes.lines("start")
    final = anyio.run(drain, processes.place, processes.folder)
    acknowledged = {line[0] for line in processes.lines("acknowledged")}
    figures = check_total(processes.place, acknowledged, starts + final)
    print({"kills": kills, "refused": len(processes.lines("refused")), **figures})
    assert len(starts) > 0
    errors = [text for process in processes.started if "Traceback" in (text := process.stderr())]
    assert errors == []
