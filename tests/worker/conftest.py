"""A queue, and a gate that no task has passed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sitq import SQLiteBackend, TaskQueue
from tests.worker.gate import GATE


@pytest.fixture(autouse=True)
def fresh_gate() -> None:
    GATE.__init__()  # type: ignore[misc]


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")) as queue:
        yield queue
