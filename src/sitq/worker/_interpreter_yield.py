"""Yield the interpreter to a store's thread while a reservation is under way.

The thread of a store that runs in this process needs the interpreter after each statement. While
the event loop is busy, the thread gets it after up to 5 ms, CPython's switch interval. So a
reservation of several statements would take so long that the worker runs out of tasks meanwhile.
At the end of each turn the loop sleeps for a moment, which hands the interpreter over.

@MEASURED@

The tests run without it as well: it changes no result.
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
