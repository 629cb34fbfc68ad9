"""Who has the store open: users are counted, and one event loop at a time holds an instance."""

from __future__ import annotations

import os
from typing import Any

from anyio.lowlevel import current_token

from sitq import UsageError

__all__ = ["Holder"]


class Holder:
    """The users of one instance, and the loop that they run in."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._users = 0
        self._loop: Any = None
        self._pid = 0

    def enter(self) -> None:
        """Count a user in."""
        if self._users and not _has_ended(self._loop):
            self.check()
        else:
            self._users, self._loop, self._pid = 0, current_token().native_token, os.getpid()
        self._users += 1

    def leave(self) -> None:
        """Count a user out."""
        self._users = max(0, self._users - 1)

    def check_open(self) -> None:
        """Refuse a caller if nobody has opened the store."""
        if not self._users or self._pid != os.getpid():
            raise UsageError(f"{self._name} is not open: use 'async with' on its queue")

    def check(self) -> None:
        """Refuse a caller in another loop, too."""
        self.check_open()
        if current_token().native_token is not self._loop:
            raise UsageError(f"{self._name} is open in another event loop: make another instance")


def _has_ended(loop: Any) -> bool:
    """Tell if a loop cannot run anything any more."""
    if hasattr(loop, "is_closed"):  # asyncio's
        return bool(loop.is_closed())
    try:
        loop.run_sync_soon(lambda: None)
    except RuntimeError:  # trio's word for it
        return True
    return False
