"""The loop in a thread that drivers of asyncio live in under trio."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import anyio
import pytest

from sitq import UsageError
from sitq._loops import LoopRef
from sitq.backends._driver_loop import DriverLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def the_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_work_cancelled_before_its_first_step_keeps_no_caller_waiting() -> None:
    driver_loop = DriverLoop(LoopRef(), "sitq-test")
    loop = await driver_loop.run(the_loop)
    posted = threading.Event()
    loop.call_soon_threadsafe(posted.wait)
    errors: list[UsageError] = []
    blocked: list[Future[asyncio.AbstractEventLoop]] = []

    async def ask() -> None:
        try:
            await driver_loop.run(the_loop)
        except UsageError as error:
            errors.append(error)

    def cancel_all() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            blocked.append(driver_loop.submit(the_loop))
            loop.call_soon_threadsafe(cancel_all)
            posted.set()
    assert len(errors) == 1
    with pytest.raises(UsageError):
        blocked[0].result(timeout=10)
    await driver_loop.end()
