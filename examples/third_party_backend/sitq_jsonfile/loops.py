"""Counts who has the store open, in one event loop at a time."""

from __future__ import annotations

import os
from typing import Any

from anyio.lowlevel import current_token

from sitq import UsageError

__all__ = ["Holder"]


class Holder:
    """Counts the opens of one instance, and knows the event loop that they belong to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._users = 0
        self._loop: Any = None
        self._pid = 0

    def enter(self) -> None:
        """Count one more open."""
        if self._users and not _has_ended(self._loop):
            self.check()
        else:
            self._users, self._loop, self._pid = 0, current_token().native_token, os.getpid()
        self._users += 1

    def leave(self) -> None:
        """Count one open less; raise `UsageError` if another event loop has the store open."""
        if self._users and self._pid == os.getpid():
            self.check()
        self._users = max(0, self._users - 1)

    def check_open(self) -> None:
        """Raise `UsageError` if the store is not open in this process."""
        if not self._users or self._pid != os.getpid():
            raise UsageError(f"{self._name} is not open: use 'async with' on its queue")

    def check(self) -> None:
        """Raise `UsageError` if the store is not open, or is open in another event loop."""
        self.check_open()
        if current_token().native_token is not self._loop:
            raise UsageError(f"{self._name} is open in another event loop: make another instance")


def _has_ended(loop: Any) -> bool:
    """Return whether an event loop has ended."""
    if hasattr(loop, "is_closed"):  # asyncio's
        return bool(loop.is_closed())
    try:
        loop.run_sync_soon(lambda: None)
    except RuntimeError:  # raised by a trio loop that has ended
        return True
    return False
