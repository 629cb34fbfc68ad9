"""Run the reads and writes of the callers of one PostgreSQL store.

Writes go through four lanes: enqueues, enqueues with unique keys, outcomes, and all others. A lane
has one statement under way at a time, and requests that wait in it share the next one. The lanes do
not wait for each other. A caller whose task is locked by another transaction waits outside them.
"""

from __future__ import annotations

import random
import time
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from sitq.backends._batch_queue import BatchQueue, Compensate, Request, group_by_operation, wake_all
from sitq.backends._operations import RESERVE
from sitq.backends.postgres._operation_runner import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    OPERATIONS,
    OperationRunner,
)
from sitq.errors import BackendBusyError, BackendConnectionError, UnknownOutcomeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq._loops import LoopRef
    from sitq.backends._driver_loop import DriverLoop

__all__ = ["PgDatabase"]

T = TypeVar("T")

_VERBS: Final = {operation: verb for verb, operation in OPERATIONS.items()}
_JOINABLE: Final = {operation for operation, verb in _VERBS.items() if verb.joinable}


class Lane(BatchQueue):
    """Requests that are carried out one after another, by a task of the driver's loop."""

    def __init__(self, loop: LoopRef, driver_loop: DriverLoop, runner: OperationRunner) -> None:
        super().__init__(loop)
        self._driver_loop = driver_loop
        self._runner = runner
        self._compensated = anyio.Event()
        self._compensating = 0

    async def compensated(self) -> None:
        """Return once the answers of all cancelled callers have been undone."""
        while self._compensating:
            await self._compensated.wait()

    def _abandon(self, request: Request[Any]) -> None:
        if request.compensate is not None and not request.settled:
            self._compensating += 1
            request.compensating = True
        super()._abandon(request)
        if request.compensating and not request.abandoned:
            self._has_compensated(1)  # it was not written: there is nothing to undo

    def _post_compensation(self, compensation: Request[Any]) -> None:
        self._compensating += 1
        compensation.compensating = True
        self.post(compensation)

    def _has_compensated(self, count: int) -> None:
        self._compensating -= count
        self._compensated.set()
        self._compensated = anyio.Event()

    def _begin(self) -> None:
        # Again if the loop ends meanwhile: callers that clean up wait for their answers.
        self._driver_loop.start(self._flush, self._begin)

    def _end(self, batch: list[Request[Any]]) -> None:
        wake_all(batch)
        if count := sum(request.compensating for request in batch):
            self._has_compensated(count)

    # -- in the driver's loop ----------------------------------------------------------------

    async def _flush(self) -> None:
        again = True
        while again:
            batch = self._take()
            await self._carry_out(batch)
            await self._carry_out(self._settle(batch))
            again = self._more()
            self._driver_loop.tell(partial(self._end, batch))

    async def _carry_out(self, batch: list[Request[Any]]) -> None:
        """Give each request an answer or an error; one that fails does not fail the others."""
        try:
            for operation, group in group_by_operation(batch):
                if operation not in _JOINABLE or not await self._carry_out_together(group):
                    for request in group:
                        await self._carry_out_together([request])
        except BaseException as error:  # noqa: BLE001 - no caller may wait for ever
            for request in batch:
                if request.answers is None and request.error is None:
                    name, kind = request.operation.__name__, type(error).__name__
                    request.error = UnknownOutcomeError(f"{name}: the outcome is unknown: {kind}")

    async def _carry_out_together(self, group: list[Request[Any]]) -> bool:
        """Call an operation once for a group of requests, and give each its answers.

        Returns False if each has to be tried alone, since one of them may have failed all.
        """
        items = list(chain.from_iterable(request.items for request in group))
        try:
            answers = iter(await self._runner.write(group[0].operation, items))
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            if len(group) > 1 and not isinstance(error, BackendConnectionError):
                return False
            for request in group:
                request.error = error
        else:
            for request in group:
                request.answers = list(islice(answers, len(request.items)))
        return True


class PgDatabase:
    """Run the operations of one store; in the callers' loop."""

    def __init__(
        self,
        loop: LoopRef,
        driver_loop: DriverLoop,
        runner: OperationRunner,
        timeout: float | None,
    ) -> None:
        self._driver_loop = driver_loop
        self._runner = runner
        self._timeout = timeout
        self._is_shut = False
        self._lanes = {verb.lane: Lane(loop, driver_loop, runner) for verb in OPERATIONS}
        self._reserving = self._lanes[RESERVE.lane]

    async def write(
        self,
        operation: Callable[..., Awaitable[list[T | None]]],
        items: Sequence[Any],
        compensate: Compensate[T] | None = None,
    ) -> list[T]:
        """Run an operation, in one statement with other requests for it.

        Items that another transaction has locked are tried again if the table of verbs says so,
        while only their caller waits.

        Raises:
            BackendBusyError: an item was locked for as long as a statement may take.
        """
        await self._begin_call()
        verb = _VERBS[operation]
        lane = self._lanes[verb.lane]
        answers: list[Any] = await lane.write(operation, items, compensate)
        limit = self._timeout if verb.held == "until_timeout" else None
        pause, begun = FIRST_PAUSE / 10, time.monotonic()
        while None in answers and verb.held != "never":
            if limit is not None and time.monotonic() - begun > limit:
                raise BackendBusyError(
                    f"{operation.__name__} on {self._runner.place}: an open transaction of another "
                    f"connection is in the way for more than {limit:g} s (statement timeout)"
                )
            await anyio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, LONGEST_PAUSE)
            await self._begin_call()
            held = [place for place, answer in enumerate(answers) if answer is None]
            again: list[Any] = await lane.write(operation, [items[place] for place in held])
            for place, answer in zip(held, again, strict=True):
                answers[place] = answer
        return answers

    async def _begin_call(self) -> None:
        await self._reserving.compensated()
        if self._is_shut:
            raise UsageError("the backend was closed during this call")

    async def read(self, operation: Callable[..., Awaitable[T]], *parameters: Any) -> T:
        """Run an operation that changes nothing."""
        await self._begin_call()
        return await self._driver_loop.run(self._runner.read, operation, parameters)

    def shut(self) -> None:
        """Refuse new calls."""
        self._is_shut = True
