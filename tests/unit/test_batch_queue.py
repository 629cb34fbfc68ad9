"""Answers that go back to those who wait together."""

from __future__ import annotations

import anyio
import pytest

from sitq._loops import LoopRef
from sitq.backends._batch_queue import BatchQueue, Request, wake_all


class Raising(Request[None]):
    """A request whose waking raises."""

    def wake(self) -> None:
        super().wake()
        raise MemoryError


@pytest.mark.anyio
async def test_a_caller_that_cannot_be_woken_blocks_no_other() -> None:
    loop = LoopRef()
    batch = [Request[None](loop, list, ()), Raising(loop, list, ()), Request[None](loop, list, ())]
    with pytest.raises(MemoryError):
        wake_all(batch)
    with anyio.fail_after(20):
        for request in batch:
            await request.wait()


class Interrupt(BaseException):
    """What a signal handler raises in these tests."""


class InterruptedQueue(BatchQueue):
    """Is interrupted before it notifies the writer for the first time."""

    def __init__(self, loop: LoopRef) -> None:
        super().__init__(loop)
        self.notified: list[bool] = []

    def _begin(self) -> None:
        self.notified.append(True)
        if len(self.notified) == 1:
            raise Interrupt


@pytest.mark.anyio
async def test_an_interrupt_does_not_leave_requests_without_a_writer() -> None:
    requests = InterruptedQueue(LoopRef())
    with pytest.raises(Interrupt):
        await requests.write(list, ())
    assert len(requests.notified) == 2
