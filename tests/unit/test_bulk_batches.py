"""Bulk operations go on in batches, and leave the store to others in between."""

from __future__ import annotations

import time

import anyio
import pytest

from sitq.admin._bulk import in_batches
from sitq.administration import BulkResult

pytestmark = pytest.mark.anyio

STEP = 0.02


async def test_a_bulk_operation_rests_between_its_batches() -> None:
    begun: list[float] = []
    ended: list[float] = []

    async def step(size: int, cursor: str | None) -> BulkResult:
        begun.append(time.perf_counter())
        await anyio.sleep(STEP)
        ended.append(time.perf_counter())
        return BulkResult(size, size, (), None if cursor == "2" else str(len(ended)))

    result = await in_batches(step, None, None)
    assert (result.matched, result.done, result.cursor) == (3000, 3000, None)
    rests = [start - end for end, start in zip(ended, begun[1:], strict=False)]
    assert len(rests) == 2
    assert min(rests) >= STEP / 2
