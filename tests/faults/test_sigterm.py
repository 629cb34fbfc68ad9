"""SIGTERM to real workers: what runs is handed back, however often the signal comes."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.faults import programs
from tests.faults.processes import Process, Processes, counts, enqueue, wait_for_status


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("function", [programs.hold, programs.hold_a_thread])
def test_sigterm_ends_a_worker_and_hands_back_what_runs(
    processes: Processes, function: Callable[[str], object], times: int
) -> None:
    """What a thread returns after that changes nothing; Python waits for it at the exit."""
    opened = processes.folder / "opened"
    task_id = enqueue(processes.place, function, str(opened))
    worker = processes.start("worker", shutdown_timeout=0.2)
    worker.wait_for("start")
    terminate(worker, times)
    wait_for_status(processes.place, task_id, "pending")
    opened.touch()
    assert worker.popen.wait(20) == 0
    assert counts(processes) == [(1, 0, 0)]


@pytest.mark.parametrize("times", [1, 5])
def test_sigterm_is_heard_once_a_task_lets_the_loop_go(processes: Processes, times: int) -> None:
    task_id = enqueue(processes.place, programs.block, 0.5)
    worker = processes.start("worker", shutdown_timeout=0.2)
    worker.wait_for("start")
    for _ in range(times):
        worker.signal(signal.SIGTERM)
    assert worker.popen.wait(20) == 0
    wait_for_status(processes.place, task_id, "success")
    assert counts(processes) == [(1, 1, 0)]


@pytest.mark.parametrize("times", [1, 5])
def test_a_task_that_swallows_its_cancellation_is_handed_back_all_the_same(
    processes: Processes, times: int
) -> None:
    task_id = enqueue(processes.place, programs.swallow)
    worker = processes.start("worker", shutdown_timeout=0.1)
    worker.wait_for("start")
    terminate(worker, times)
    worker.wait_for("swallowed")
    wait_for_status(processes.place, task_id, "pending")


def terminate(worker: Process, times: int) -> None:
    """Send SIGTERM so often, each once the one before was heard."""
    for number in range(times):
        worker.signal(signal.SIGTERM)
        worker.wait_for("term", number + 1)
