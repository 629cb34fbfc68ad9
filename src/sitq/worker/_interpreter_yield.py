"""Yield the interpreter to a store's thread while a reservation is under way.

The thread of a store that runs in this process needs the interpreter after each statement. While
the event loop is busy, the thread gets it after up to 5 ms, CPython's switch interval. Meanwhile
the worker may run out of tasks. So the loop sleeps for a moment at the end of a turn, which hands
the interpreter over.

Measured on two quiet cores, in three interleaved rounds of the benchmark's drain of no-op tasks:
with it they run at 0.77 to 0.78 of the floor with ``synchronous="NORMAL"``, without it at 0.70 to
0.71; with ``"FULL"`` at 6.7 to 7.6 times the floor, without it at 6.6 to 7.1. On cores that run
other load too, no gain is measurable. It changes no result.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sitq.backends._capabilities import UsesDatabaseThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sitq.protocols import Backend

__all__ = ["InterpreterYield"]

# False: the loop never sleeps.
ENABLED: Final = True

# A reservation needs the interpreter a few times. The loop sleeps at the end of so many turns, for
# so many seconds.
_TURNS: Final = 8
_SECONDS: Final = 0.00002


class InterpreterYield:
    """Sleeps in the loop at the end of the first turns of each reservation.

    Args:
        backend: the store; nothing is done for one without a thread in this process.
    """

    def __init__(self, backend: Backend) -> None:
        self._turns = _TURNS if ENABLED and isinstance(backend, UsesDatabaseThread) else 0
        self._left = 0

    @contextmanager
    def reserving(self) -> Iterator[None]:
        """Sleep at the ends of turns within this block."""
        self._left = self._turns
        try:
            yield
        finally:
            self._left = 0

    def end_turn(self) -> None:
        """Sleep for a moment if a reservation is under way; called at the end of a turn."""
        if self._left:
            self._left -= 1
            time.sleep(_SECONDS)
