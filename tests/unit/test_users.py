"""Who has a store open, when the process was forked."""

from __future__ import annotations

import os

import pytest

from sitq._loops import LoopRef
from sitq.backends._users import Users
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
async def test_a_child_that_has_closed_is_still_told_of_the_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = Users(lambda: "the store", Opened, "they may share it")
    await users.enter()
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    await users.leave()
    await users.leave()
    with pytest.raises(UsageError, match="opened before a fork"):
        await users.enter()
    with pytest.raises(UsageError, match="opened before a fork"):
        users.use()
