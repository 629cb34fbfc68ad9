"""Every call ends, and nothing stays open, whatever close, cancellation and collection meet it."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sitq import Backend, SQLiteBackend, TaskQueue, UsageError
from sitq.backends.memory import MemoryBackend

PATIENCE = 10.0
# What a step does, to which of the calls so far, and how many turns of the loop come after it.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enqueue", "enqueue", "close", "connect", "wait", "cancel", "collect"]),
        st.integers(0, 9),
        st.integers(0, 12),
    ),
    min_size=2,
    max_size=12,
)
Steps = list[tuple[str, int, int]]


def nothing() -> None:
    """Do nothing."""


async def call(queue: TaskQueue, step: str) -> str:
    """Make a call; return what it came to."""
    try:
        if step == "enqueue":
            return str(await queue.enqueue(nothing))
        if step == "wait":
            await queue.get_result(await queue.enqueue(nothing))
        elif step == "connect":
            await queue.connect()
        else:
            await queue.close()
    except UsageError:
        return "refused"
    return "done"


async def check(queue: TaskQueue, backend: Any, ids: set[str]) -> None:
    """All is closed by a close, and what was acknowledged is there after an opening."""
    await queue.close()
    assert backend._open_counter._count == 0
    if isinstance(backend, SQLiteBackend):  # what is in memory ends with the last close
        async with queue:
            for task_id in ids:
                await queue.get_task(task_id)


def on_asyncio(backend: Backend, steps: Steps, *, leaves: bool) -> None:
    """Carry steps out on asyncio, whose own cancellation no scope of anyio's holds up."""

    async def main() -> None:
        queue = TaskQueue(backend)
        calls: list[asyncio.Task[str]] = []
        for step, which, turns in steps:
            if step == "collect":
                gc.collect()
            elif step != "cancel":
                calls.append(asyncio.create_task(call(queue, step)))
            elif calls:
                calls[which % len(calls)].cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        if leaves:  # and asyncio.run cancels what is left
            return
        async with asyncio.timeout(PATIENCE):
            while any(not each.done() for each in calls):  # one may have opened it again
                await queue.close()
                await asyncio.sleep(0)
        ends = [each.result() for each in calls if not each.cancelled()]
        await check(queue, backend, {end for end in ends if end not in {"done", "refused"}})

    asyncio.run(main())


def on_trio(backend: Backend, steps: Steps, *, leaves: bool) -> None:
    """Carry steps out on trio."""

    async def main() -> None:
        queue = TaskQueue(backend)
        scopes: list[trio.CancelScope] = []
        ends: list[str] = []

        async def run(step: str, scope: trio.CancelScope) -> None:
            with scope:
                ends.append(await call(queue, step))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for step, which, turns in steps:
                    if step == "collect":
                        gc.collect()
                    elif step != "cancel":
                        scopes.append(trio.CancelScope())
                        nursery.start_soon(run, step, scopes[-1])
                    elif scopes:
                        scopes[which % len(scopes)].cancel()
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                if leaves:
                    nursery.cancel_scope.cancel()
                    return
                while len(nursery.child_tasks):  # one may have opened it again
                    await queue.close()
                    await trio.lowlevel.checkpoint()
            await check(queue, backend, {end for end in ends if end not in {"done", "refused"}})

    trio.run(main)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _has_more(files: int, threads: int) -> bool:
    return threading.active_count() > threads or open_files() > files


@pytest.mark.parametrize("run", [on_asyncio, on_trio])
@pytest.mark.parametrize("store", ["sqlite", "memory"])
@settings(max_examples=settings().max_examples // 3)  # each opens a store or more
@given(steps=STEPS, leaves=st.booleans())
def test_every_call_ends_and_nothing_stays_open(
    store: str, run: Callable[..., None], steps: Steps, leaves: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before, threads = open_files(), threading.active_count()
        path = Path(folder) / "q.db"
        run(SQLiteBackend(path) if store == "sqlite" else MemoryBackend(), steps, leaves=leaves)
        gc.collect()
        give_up = time.monotonic() + PATIENCE
        while _has_more(before, threads) and time.monotonic() < give_up:
            time.sleep(0.001)  # a thread is about to end, and lets go of what it has
            gc.collect()
        assert not _has_more(before, threads)
