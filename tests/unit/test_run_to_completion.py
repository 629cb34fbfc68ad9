"""Work that no cancellation cuts."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from sitq._loops import run_to_completion


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_each_cancellation_of_asyncio_waits_for_the_end() -> None:
    go = asyncio.Event()
    ended = False

    async def work() -> None:
        nonlocal ended
        await go.wait()
        ended = True

    task = asyncio.create_task(run_to_completion(work))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


def test_work_that_is_cancelled_before_its_first_step_is_done_all_the_same() -> None:
    """Whoever cancels all tasks of a loop cancels that of the work too."""
    ended = False

    async def work() -> None:
        nonlocal ended
        await anyio.lowlevel.checkpoint()
        ended = True

    async def main() -> None:
        call = asyncio.create_task(run_to_completion(work))
        await asyncio.sleep(0)  # the call has made the work's task, which has not begun
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert ended


@pytest.mark.anyio
async def test_a_scope_waits_for_the_end_too() -> None:
    ended = False

    async def work() -> str:
        nonlocal ended
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        ended = True
        return "done"

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_to_completion(work)
        await anyio.lowlevel.checkpoint()
    assert ended
    assert await run_to_completion(work) == "done"


@pytest.mark.anyio
async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_to_completion(work)
