"""A worker whose network is cut for longer than its lease: others do its work, and it lives on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from sitq import TaskQueue, call
from tests.faults import programs
from tests.faults.places import backend_at
from tests.faults.processes import Process, Processes, check_total, query
from tests.postgres.networks import Cut, Network
from tests.postgres.servers import Server, new_schema

LONG = "SITQ_SOAK" in os.environ
# The first is over before TCP gives up; in the second it gives up, and all connects anew.
CUTS: list[tuple[str, Cut, float]] = [("asyncio", "pulled", 2.5), ("trio", "silent", 2.5)]
if LONG:
    CUTS = [
        (loop, how, seconds)
        for seconds in (2.5, 15.0)
        for loop in ("asyncio", "trio")
        for how in ("pulled", "silent")
    ]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.remove()


@pytest.fixture(scope="module")
def url(network: Network) -> Iterator[str]:
    """Where a server is that this namespace and the other one reach."""
    server = Server()
    yield server.listen_on(network.address)
    server.remove()


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path, url: str) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path, place=f"{url}#{new_schema()}")
    yield processes
    processes.kill_all()


def enqueue(processes: Processes, function: Callable[[float], object], *seconds: float) -> set[str]:
    async def main() -> set[str]:
        async with TaskQueue(backend_at(processes.place)) as queue:
            return set(await queue.enqueue_many([call(function, each) for each in seconds]))

    return anyio.run(main)


def until(fact: Callable[[], bool], *started: Process) -> None:
    give_up = time.monotonic() + 40
    while not fact():
        assert time.monotonic() < give_up, [process.stderr() for process in started]
        time.sleep(0.02)


def all_final(processes: Processes) -> bool:
    return not query(processes.place, "SELECT 1 FROM tasks WHERE finished_at IS NULL LIMIT 1")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("processes", "how", "seconds"), CUTS, indirect=["processes"])
def test_a_worker_cut_off_beyond_its_lease_changes_nothing_and_goes_on_later(
    processes: Processes, network: Network, how: Cut, seconds: float
) -> None:
    """One task is given up in time, what became of another comes too late; then it works again."""
    acknowledged = enqueue(processes, programs.linger, 30.0)
    acknowledged |= enqueue(processes, programs.note, 0.3)  # its outcome is lost
    first = processes.start("worker", through=network.through)
    first.wait_for("start", 2)
    network.cut(how)
    cut = time.monotonic()
    try:
        acknowledged |= enqueue(processes, programs.note, *[0.01] * 20)
        second = processes.start("worker")
        until(lambda: all_final(processes), first, second)
        before = query(processes.place, "SELECT * FROM tasks ORDER BY id")
        assert first.popen.poll() is None
        assert time.monotonic() < cut + seconds + 10
        time.sleep(max(0.0, cut + seconds - time.monotonic()))  # the time that it is cut off
    finally:
        network.mend(how)
    until(lambda: "came after its lease was lost; it changed nothing" in first.stderr(), first)
    assert query(processes.place, "SELECT * FROM tasks ORDER BY id") == before
    crashes = query(processes.place, "SELECT epoch, crashes FROM tasks WHERE epoch > 1")
    assert crashes == [(2, 1)] * 2
    assert len(first.lines("start")) == 2
    assert second.finish() == 0
    acknowledged |= enqueue(processes, programs.note, *[0.01] * 3)
    until(lambda: all_final(processes), first)
    assert first.finish() == 0
    # Some connection may still wait for its turn to send again, for longer than a lease.
    assert len(first.lines("start")) >= 2 + 3
    figures = check_total(processes.place, acknowledged, processes.lines("start"))
    assert (figures["tasks"], figures["acknowledged"]) == (25, 25)
    ((epoch, ended),) = first.lines("ended")
    ((next_epoch, began),) = second.lines("began")
    assert (epoch, next_epoch) == ("1", "2")
    assert float(ended) < float(began)
