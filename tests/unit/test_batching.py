"""Answers that go back to those who wait together."""

from __future__ import annotations

import anyio
import pytest

from sitq._loops import LoopRef
from sitq.backends._batching import Request, wake_all


class Raising(Request[None]):
    """A request whose waking raises."""

    def wake(self) -> None:
        super().wake()
        raise MemoryError


@pytest.mark.anyio
async def test_one_that_cannot_be_woken_keeps_nobody_waiting() -> None:
    loop = LoopRef()
    batch = [Request[None](loop, list, ()), Raising(loop, list, ()), Request[None](loop, list, ())]
    with pytest.raises(MemoryError):
        wake_all(batch)
    with anyio.fail_after(5):
        for request in batch:
            await request.wait()
