"""SIGTERM to real workers: what runs is handed back, however often the signal comes."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.faults import crew
from tests.faults.crews import Crew, Member, counts, enqueue, wait_for_status


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("function", [crew.hold, crew.hold_a_thread])
def test_sigterm_ends_a_worker_and_hands_back_what_runs(
    company: Crew, function: Callable[[str], object], times: int
) -> None:
    """What a thread returns after that changes nothing; Python waits for it at the exit."""
    opened = company.folder / "opened"
    task_id = enqueue(company.place, function, str(opened))
    worker = company.hire("worker", shutdown_timeout=0.2)
    worker.wait_for("start")
    terminate(worker, times)
    wait_for_status(company.place, task_id, "pending")
    opened.touch()
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
