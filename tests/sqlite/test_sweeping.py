"""A sweep that is held up takes back no more than what was due when it was asked for."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend
from sitq.protocols import Sweep
from sitq.testing import FakeClock
from tests.sqlite.samples import locked, some_task

pytestmark = pytest.mark.anyio


async def test_a_lease_that_ends_while_a_sweep_waits_is_left_to_the_next_one(
    tmp_path: Path,
) -> None:
    """The heartbeats of the process that swept may have been held up with it."""
    clock = FakeClock()
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path, clock=clock)
    await backend.open()
    try:
        await backend.enqueue([some_task(), some_task()])
        await backend.reserve("worker", ["default"], 1, 1.0)
        await backend.reserve("worker", ["default"], 1, 2.0)
        clock.advance(1)
        swept: list[Sweep] = []

        async def sweep() -> None:
            swept.append(await backend.sweep(3))

        async with anyio.create_task_group() as group:
            with locked(path):
                group.start_soon(sweep)
                await anyio.wait_all_tasks_blocked()
                clock.advance(5)
        assert [each.reclaimed for each in swept] == [1]
        assert (await backend.sweep(3)).reclaimed == 1
    finally:
        await backend.close()
