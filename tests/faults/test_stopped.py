"""A process that is stopped inside a write transaction holds the others up, and nothing more."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sitq import BackendBusyError, SQLiteBackend, TaskQueue, TaskStatus, call
from sitq.backends.sqlite import _sql, _writer
from tests.faults import programs
from tests.faults.breaking import point
from tests.faults.processes import Processes, check_total, query


@pytest.fixture(params=["asyncio", "trio"])
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path)
    yield processes
    processes.kill_all()


def fill(processes: Processes, count: int) -> set[str]:
    async def main() -> set[str]:
        async with TaskQueue(SQLiteBackend(processes.database)) as queue:
            return set(await queue.enqueue_many([call(programs.note, 0.001)] * count))

    return anyio.run(main, backend=processes.loop)


def wait_until_final(database: Path) -> None:
    give_up = time.monotonic() + 60
    while query(database, "SELECT 1 FROM tasks WHERE finished_at IS NULL LIMIT 1"):
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
@pytest.mark.parametrize(
    "text", [_sql.INSERT_LEASES, _sql.SUCCEED_ALIKE], ids=["reserve", "succeed"]
)
def test_a_process_stopped_in_a_transaction_holds_up_writers_until_it_goes_on_or_dies(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, end: signal.Signals, text: str
) -> None:
    """Callers get an error; readers continue; the other worker lives, and all is done once."""
    # Who lives must hold its leases, on a busy machine too.
    lease = 60.0 if end is signal.SIGCONT else 1.0
    acknowledged = fill(processes, 60)
    stopped = processes.start("worker", point("stop", "commit", text), lease=lease)
    stopped.wait_for("broken")
    other = processes.start("worker", lease=60.0)

    async def meet_the_lock() -> None:
        async with TaskQueue(SQLiteBackend(processes.database)) as queue:
            with pytest.raises(BackendBusyError, match=r"enqueue on .*: database is locked"):
                await queue.enqueue(programs.note, 0.001)
            info = await queue.get_task(min(acknowledged))
            assert info.status in {TaskStatus.PENDING, TaskStatus.IN_PROGRESS}

    with monkeypatch.context() as patch:
        patch.setattr(_writer, "BUSY_SECONDS", 0.2)
        anyio.run(meet_the_lock, backend=processes.loop)
    other.wait_for("ready")
    assert other.popen.poll() is None
    assert other.lines("start") == []
    stopped.signal(end)
    acknowledged |= fill(processes, 5)
    wait_until_final(processes.database)
    for process in processes.started if end is signal.SIGCONT else [other]:
        assert process.finish() == 0
    figures = check_total(processes.database, acknowledged, processes.lines("start"))
    assert figures["tasks"] == 65
    # Only what the dead one had reserved runs twice, each a crash of its own.
    ((crashes,),) = query(processes.database, "SELECT sum(crashes) FROM tasks")
    assert figures["reruns"] <= int(str(crashes))
    if end is signal.SIGCONT or text == _sql.INSERT_LEASES:
        assert figures["reruns"] == 0
