"""Processes on each loop and each store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.processes import Processes

LONG = "SITQ_SOAK" in os.environ
KINDS = [("asyncio", "sqlite"), ("trio", "sqlite"), ("asyncio", "postgres")]
# What is special about the last one is the bridge, which the other tests of the store cross too.
EACH = [*KINDS, ("trio", "postgres")]


@pytest.fixture(params=EACH if LONG else KINDS, ids="-".join)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops, and one of the stores."""
    processes = Processes(request.param[0], tmp_path, request.param[1])
    yield processes
    processes.kill_all()
