"""Group commit by a task of the driver's loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from sitq.backends._batching import Gathering, Request, wake_all
from sitq.errors import UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sitq._loops import LoopRef

__all__ = ["TaskGroupCommit"]


class TaskGroupCommit(Gathering):
    """Hands what gathered to a task of a driver's loop.

    Args:
        loop: the loop that all requests come from.
        start: has a coroutine function run as a task of the driver's loop; from any thread. Calls
            the second function instead if that task is cancelled before its first step.
        tell: has a function called in the loop that requests come from.
        write: carries out a batch; answers or an error go into each request.
    """

    def __init__(
        self,
        loop: LoopRef,
        start: Callable[[Callable[[], Coroutine[Any, Any, None]], Callable[[], object]], None],
        tell: Callable[[Callable[[], None]], None],
        write: Callable[[list[Request[Any]]], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(loop)
        self._start = start
        self._tell = tell
        self._write = write
        self._undone = anyio.Event()
        self._undoing = 0

    def _begin(self) -> None:
        # Again where the loop ends meanwhile: those who clean up wait for their answers.
        self._start(self._flush, self._begin)

    async def undone(self) -> None:
        """Return once the answers of all callers that are gone have been taken back."""
        while self._undoing:
            await self._undone.wait()

    def _abandon(self, request: Request[Any]) -> None:
        if request.undo is not None and not request.settled:
            self._undoing += 1
            request.undoing = True
        super()._abandon(request)
        if request.undoing and not request.abandoned:
            self._has_undone(1)  # it had not been taken: there is nothing to undo

    def _post_reverse(self, reverse: Request[Any]) -> None:
        self._undoing += 1
        reverse.undoing = True
        self.post(reverse)

    def _has_undone(self, count: int) -> None:
        self._undoing -= count
        self._undone.set()
        self._undone = anyio.Event()

    async def _flush(self) -> None:
        while True:
            batch = self._take()
            await self._write_all(batch)
            if reverses := self._settle(batch):
                await self._write_all(reverses)
            again = self._more()
            self._tell(partial(self._end, batch))
            if not again:
                return

    async def _write_all(self, batch: list[Request[Any]]) -> None:
        """Write a batch; whatever happens, each request has an answer or an error."""
        try:
            if batch:
                await self._write(batch)
        except BaseException as error:  # noqa: BLE001 - it is told to those who wait
            for request in batch:
                if request.answers is None and request.error is None:
                    name, kind = request.operation.__name__, type(error).__name__
                    request.error = UnknownOutcomeError(f"{name}: the outcome is unknown: {kind}")

    def _end(self, batch: list[Request[Any]]) -> None:
        wake_all(batch)
        if count := sum(request.undoing for request in batch):
            self._has_undone(count)
