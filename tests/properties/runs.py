"""A search in one event loop, with stores that stay open from example to example.

Most of an example's time would go into making stores and into waking threads otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from greenlet import getcurrent, greenlet

from sitq.testing import FakeClock
from tests.properties.lives import present
from tests.properties.stores import Maker, Store

__all__ = ["OpenStores", "call", "in_loop"]

T = TypeVar("T")


def in_loop(loop: str, function: Callable[[], object]) -> None:
    """Run plain code in an event loop that it may `call` into, without a thread of its own."""

    async def main() -> None:
        plain = greenlet(function)
        wanted = plain.switch()
        while not plain.dead:
            try:
                answer = await wanted()
            except BaseException as error:
                wanted = plain.throw(error)
            else:
                wanted = plain.switch(answer)

    anyio.run(main, backend=loop)


def call(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Have the event loop around run a function, and return what it returned."""
    answer: T = present(getcurrent().parent).switch(partial(function, *arguments))
    return answer


class OpenStores:
    """The stores of a search, for one example after the other; all share one clock.

    A store that can be emptied stays open. After a failure all are made anew.

    Args:
        makers: one for each store.
    """

    def __init__(self, makers: Sequence[Maker]) -> None:
        self._makers: Final = makers
        self.clock: Final = FakeClock()
        self._start: Final[datetime] = self.clock.now()
        self._kept: Final[dict[int, Store]] = {}

    def begin(self) -> list[Store]:
        """Return the stores, open and empty, at the moment at which every example begins."""
        self.clock.jump((self._start - self.clock.now()).total_seconds())
        return [self._open(number) for number in range(len(self._makers))]

    def _open(self, number: int) -> Store:
        store = self._kept.get(number)
        if store is not None:
            store.empty()
            return store
        folder = tempfile.TemporaryDirectory()
        store = Store(self._makers[number](self.clock, Path(folder.name)), folder.cleanup)
        call(store.open)
        self._kept[number] = store
        return store

    def end(self, *, failed: bool) -> None:
        """Close the stores that cannot be emptied, or all of them."""
        for number, store in list(self._kept.items()):
            if failed or not store.can_be_emptied:
                del self._kept[number]
                call(store.close)
