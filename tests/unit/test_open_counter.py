"""Who has a store open: loops that try at once, and processes that were forked."""

from __future__ import annotations

import os
from functools import partial

import anyio
import anyio.to_thread
import pytest

from sitq._loops import LoopRef
from sitq.backends._open_counter import OpenCounter
from sitq.errors import UsageError


class Opened:
    """A store that is open, of nothing."""

    def __init__(self, loop: LoopRef) -> None:
        self.loop = loop
        self.pid = os.getpid()

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    def abandon(self) -> None: ...


@pytest.mark.anyio
async def test_a_child_that_has_closed_still_gets_the_error_about_the_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = OpenCounter(lambda: "the store", Opened, "they may share it")
    await users.enter()
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    await users.leave()
    await users.leave()
    with pytest.raises(UsageError, match="opened before a fork"):
        await users.enter()
    with pytest.raises(UsageError, match="opened before a fork"):
        users.use()


@pytest.mark.anyio
async def test_while_a_loop_opens_it_no_other_loop_does_though_a_user_was_cancelled() -> None:
    go = anyio.Event()
    opened: list[Opened] = []

    class Slow(Opened):
        async def connect(self) -> None:
            opened.append(self)
            if self is opened[0]:
                await go.wait()

    users = OpenCounter(lambda: "the store", Slow, "they may share it")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(users.enter)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(users.enter)
                await anyio.wait_all_tasks_blocked()
                cancelled.cancel_scope.cancel()
            try:
                with pytest.raises(UsageError, match="another event loop"):
                    await anyio.to_thread.run_sync(partial(anyio.run, users.enter))
            finally:
                go.set()
    assert users.use().loop.is_here
    await users.leave()
