"""The way from other threads into a loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from sitq._loops import LoopRef
from sitq.backends.sqlite import _loop_waker
from sitq.backends.sqlite._loop_waker import LoopWaker

pytestmark = pytest.mark.anyio


def open_files() -> int:
    """How many files the process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("enabled", [_loop_waker.ENABLED, False])
async def test_what_threads_post_is_called_in_the_loop_and_in_order(
    monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    monkeypatch.setattr(_loop_waker, "ENABLED", enabled)
    waker, called, done = LoopWaker(LoopRef()), list[tuple[int, int]](), anyio.Event()

    def note(number: int) -> None:
        called.append((number, threading.get_ident()))

    def post() -> None:
        for number in range(1000):
            waker.post(partial(note, number))
        waker.post(done.set)

    await to_thread.run_sync(post)
    with anyio.fail_after(20):
        await done.wait()
    waker.close()
    assert called == [(number, threading.get_ident()) for number in range(1000)]


async def test_what_was_posted_before_the_closing_is_called() -> None:
    waker, done = LoopWaker(LoopRef()), anyio.Event()
    waker.post(done.set)
    waker.close()
    waker.close()
    with anyio.fail_after(20):
        await done.wait()


async def test_what_is_posted_after_the_closing_is_called_too() -> None:
    waker, done = LoopWaker(LoopRef()), anyio.Event()
    waker.close()
    await to_thread.run_sync(waker.post, done.set)
    with anyio.fail_after(20):
        await done.wait()


async def test_a_waker_that_is_collected_leaves_no_file() -> None:
    before = open_files()
    wakers = [LoopWaker(LoopRef()) for _ in range(20)]
    await to_thread.run_sync(wakers.clear)
    gc.collect()
    called = anyio.Event()
    LoopRef().call_soon(called.set)
    await called.wait()
    assert open_files() <= before


async def test_it_does_without_a_file_where_the_system_gives_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError

    monkeypatch.setattr(os, "eventfd", refuse)
    waker, done = LoopWaker(LoopRef()), anyio.Event()
    await to_thread.run_sync(waker.post, done.set)
    with anyio.fail_after(20):
        await done.wait()
    waker.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_can_be_opened_where_another_one_was_closed() -> None:
    """The selector must have forgotten a file whose number comes again."""
    for _ in range(3):
        waker, done = LoopWaker(LoopRef()), anyio.Event()
        waker.post(done.set)
        with anyio.fail_after(20):
            await done.wait()
        waker.close()


def test_what_is_left_when_its_loop_has_stopped_leaves_no_file() -> None:
    before = open_files()

    async def make() -> LoopWaker:
        return LoopWaker(LoopRef())

    loop = asyncio.new_event_loop()
    wakers = [loop.run_until_complete(make())]
    wakers.clear()
    gc.collect()
    loop.close()
    assert open_files() <= before


def test_what_is_left_when_its_loop_has_ended_leaves_no_file() -> None:
    before = open_files()
    wakers: list[LoopWaker] = []

    async def make() -> None:
        wakers.append(LoopWaker(LoopRef()))

    asyncio.run(make())
    wakers[0].post(lambda: None)
    wakers.clear()
    gc.collect()
    assert open_files() <= before


async def test_a_collection_in_the_middle_of_a_post_blocks_no_thread() -> None:
    """It may collect what holds the waker, which is then abandoned in the thread that posts."""
    waker, called = LoopWaker(LoopRef()), anyio.Event()
    with waker._lock:
        waker.post(called.set)
        waker.abandon()
    with anyio.fail_after(20):
        await called.wait()
