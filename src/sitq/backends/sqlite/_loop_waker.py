"""Call functions in an event loop from the database threads, faster than the loop's own way.

asyncio wakes its loop through a pair of sockets. That costs the thread and the loop more than an
eventfd(2), which is used here where there is one.

Measured on tmpfs, with the eventfd and without it in turn, by the lower quantiles (2 %, 10 %,
25 %): a single enqueue takes 7 % less time with it, a round trip in one process 4 to 7 % less. It
changes no result.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sitq._loops import no_op

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq._loops import LoopRef

__all__ = ["LoopWaker"]

# False: the loop is woken in its own way.
ENABLED: Final = sys.platform == "linux" and hasattr(os, "eventfd")


class LoopWaker:
    """Schedule calls in a loop, as `LoopRef.call_soon` does.

    Args:
        loop: the loop; the caller runs in it.
    """

    def __init__(self, loop: LoopRef) -> None:
        self._loop: Final = loop
        # Reentrant: a garbage collection may come while it is held, and call `abandon`.
        self._lock: Final = threading.RLock()
        self._slot: _WakeSlot | None = None
        self._forget: Callable[[], object] = no_op
        if ENABLED and isinstance(loop.asyncio, asyncio.SelectorEventLoop):
            with suppress(OSError):  # the system allows no more files
                self._slot = _WakeSlot()
        if self._slot is not None:
            # The loop refers to the slot only, so that this object can be collected.
            self._forget = loop.when_readable(self._slot.file, self._slot.read)

    def __del__(self) -> None:
        """Remove the file from the loop if `close` was forgotten."""
        if not sys.is_finalizing():  # a thread that stands still by now may hold the lock
            self.abandon()

    def post(self, function: Callable[[], object]) -> None:
        """Schedule a call of a function that raises nothing; from any thread."""
        with self._lock:
            slot = self._slot
            if slot is not None:
                slot.put(function)
        if slot is None:
            self._loop.call_soon(function)

    def close(self) -> None:
        """Call what was posted, and use the loop's own way from now on; in the loop."""
        slot = self._take_slot()
        if slot is not None:
            self._forget()
            slot.read()

    def abandon(self) -> None:
        """Schedule the same; from any thread."""
        if self._loop.inherited:
            return  # the file is the parent's, and so may be who holds the lock
        slot = self._take_slot()
        if slot is not None:
            self._loop.call_soon(self._forget)
            self._loop.call_soon(slot.read)

    def _take_slot(self) -> _WakeSlot | None:
        with self._lock:
            slot, self._slot = self._slot, None
        return slot


class _WakeSlot:
    """The posted functions, and the eventfd that wakes the loop.

    A loop that has stopped may never remove the file: it is closed once the loop is collected.
    """

    def __init__(self) -> None:
        self._posted: Final[deque[Callable[[], object]]] = deque()
        self.file: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        """Close the file, unless there was none."""
        with suppress(AttributeError):
            os.close(self.file)

    def put(self, function: Callable[[], object]) -> None:
        self._posted.append(function)
        os.eventfd_write(self.file, 1)

    def read(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.file)
        try:
            for _ in range(len(self._posted)):
                self._posted.popleft()()
        except BaseException:
            if self._posted:  # one that raises must not hold up the others
                os.eventfd_write(self.file, 1)
            raise
