"""Run operations on the connections of one PostgreSQL store.

Writes go through four lanes: enqueues, enqueues with unique keys, outcomes, and all others. A lane
has one statement under way at a time, and requests that wait in it share the next one. The lanes do
not wait for each other. A caller whose task is locked by another transaction waits outside them.

If the connection is lost before an answer arrives, the outcome is searched for.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import anyio

from sitq._logging import Log
from sitq.backends._batch_queue import BatchQueue, Compensate, Request, group_by_operation, wake_all
from sitq.backends._operations import ENQUEUE_UNIQUE, RESERVE, VERBS, operations_of
from sitq.backends.postgres import _operations, _sql
from sitq.backends.postgres._dsn import redacted_dsn
from sitq.backends.postgres._errors import (
    LostError,
    is_duplicate,
    is_passing,
    is_read_only,
    translate_error,
)
from sitq.backends.postgres._notify_throttle import NotifyThrottle
from sitq.backends.postgres._operations import PgTransaction
from sitq.backends.postgres._pool import Pool
from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    UnknownOutcomeError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.backends._driver_loop import DriverLoop
    from sitq.backends.postgres._connection import ConnectTarget, PgConnection
    from sitq.backends.postgres._sql import Statements
    from sitq.protocols import Clock, Topic

__all__ = ["OPERATIONS", "LoopBatchWriter", "PgDatabase"]


class LoopBatchWriter(BatchQueue):
    """Write batches of requests in a task of the driver's loop.

    Args:
        loop: the event loop of all callers.
        start: runs a coroutine function as a task of the driver's loop; from any thread. Calls
            the second function instead if that task is cancelled before its first step.
        tell: calls a function in the callers' loop.
        write: runs a batch, and sets answers or an error on each request.
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
        self._compensated = anyio.Event()
        self._compensating = 0

    def _begin(self) -> None:
        # Again if the loop ends meanwhile: callers that clean up wait for their answers.
        self._start(self._flush, self._begin)

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

    def _post_compensation(self, reverse: Request[Any]) -> None:
        self._compensating += 1
        reverse.compensating = True
        self.post(reverse)

    def _has_compensated(self, count: int) -> None:
        self._compensating -= count
        self._compensated.set()
        self._compensated = anyio.Event()

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
        """Write a batch; give each request an answer or an error, whatever happens."""
        try:
            if batch:
                await self._write(batch)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            for request in batch:
                if request.answers is None and request.error is None:
                    name, kind = request.operation.__name__, type(error).__name__
                    request.error = UnknownOutcomeError(f"{name}: the outcome is unknown: {kind}")

    def _end(self, batch: list[Request[Any]]) -> None:
        wake_all(batch)
        if count := sum(request.compensating for request in batch):
            self._has_compensated(count)


_log: Final = Log(__name__)

T = TypeVar("T")

# For how long to search for the outcome of a lost statement, and the pauses; in seconds.
_SEARCH_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
# How often to try a statement that was rolled back because of another transaction.
_TRIES: Final = 5

# The functions of the verbs, and the verbs of the functions.
OPERATIONS: Final = operations_of(_operations, (*VERBS, ENQUEUE_UNIQUE))
_ROWS: Final = {operation: verb for verb, operation in OPERATIONS.items()}
_JOINABLE: Final = {operation for operation, verb in _ROWS.items() if verb.joinable}
# How to find out what an operation whose answer was lost has done.
_SEARCHES: Final[Mapping[Callable[..., Any], Callable[..., Awaitable[Any]]]] = {
    operation: getattr(_operations, verb.searched_by)
    for operation, verb in _ROWS.items()
    if verb.searched_by is not None
}


class PgDatabase:
    """Run the operations of one store on a pool of connections, in the driver's loop.

    Args:
        driver_loop: the driver's loop.
        loop: the event loop of all callers.
        target: what to connect to.
        size: the largest number of connections.
        schema: the schema, and the statements for it.
        clock: a test's clock; ``None``: the server's clock is used.
        changed: called in the callers' loop with the topics that this instance has changed.
    """

    def __init__(
        self,
        driver_loop: DriverLoop,
        loop: LoopRef,
        target: ConnectTarget,
        size: int,
        schema: tuple[str, Statements],
        clock: Clock | None,
        changed: Callable[[set[Topic]], None],
    ) -> None:
        self.place: Final = redacted_dsn(target.dsn)
        self.pool: Final = Pool(target, size)
        self._driver_loop = driver_loop
        self._clock = clock
        self._statements = schema[1]
        self._changed = changed
        self._is_shut = False
        self.timeout: Final = target.timeout
        """Seconds that a statement may take; ``None``: no limit of sitq's."""
        self.throttle: Final = NotifyThrottle(schema[0], self._notify, driver_loop.start)
        lane = partial(LoopBatchWriter, loop, driver_loop.start, driver_loop.tell, self._write)
        self._lanes = {name: lane() for name in {verb.lane for verb in _ROWS.values()}}
        self._picking = self._lanes[RESERVE.lane]

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
        answers = await self._submit(operation, items, compensate)
        if None in answers and (held := _ROWS[operation].held) != "never":
            limit = self.timeout if held == "until_timeout" else None
            await self._insist(operation, items, answers, limit)
        return cast("list[T]", answers)

    async def _submit(
        self,
        operation: Callable[..., Awaitable[list[T | None]]],
        items: Sequence[Any],
        compensate: Compensate[Any] | None = None,
    ) -> list[T | None]:
        await self._picking.compensated()
        self._check_open()
        return await self._lanes[_ROWS[operation].lane].submit(operation, items, compensate)

    async def _insist(
        self,
        operation: Callable[..., Awaitable[list[T | None]]],
        items: Sequence[Any],
        answers: list[T | None],
        limit: float | None,
    ) -> None:
        """Run an operation again for each item whose answer is ``None``.

        Args:
            operation: returns ``None`` for an item that is locked.
            items: its arguments, one for each answer.
            answers: the first answers; each ``None`` is replaced.
            limit: seconds to wait; ``None``: no limit.

        Raises:
            BackendBusyError: the limit has passed.
        """
        pause, begun = _FIRST_PAUSE / 10, time.monotonic()
        while held := [place for place, answer in enumerate(answers) if answer is None]:
            if limit is not None and time.monotonic() - begun > limit:
                raise BackendBusyError(
                    f"{operation.__name__} on {self.place}: an open transaction of another "
                    f"connection is in the way for more than {limit:g} s (statement timeout)"
                )
            await anyio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)
            again = await self._submit(operation, [items[place] for place in held])
            for place, answer in zip(held, again, strict=True):
                answers[place] = answer

    async def read(self, unit: Callable[..., Awaitable[T]], *parameters: Any) -> T:
        """Run a read."""
        await self._picking.compensated()
        self._check_open()
        return await self._driver_loop.run(self._read, unit, parameters)

    def shut(self) -> None:
        """Refuse new calls; in the callers' loop, before `close`."""
        self._is_shut = True

    def _check_open(self) -> None:
        if self._is_shut:
            raise UsageError("the backend was closed during this call")

    async def _read(self, unit: Callable[..., Awaitable[T]], parameters: tuple[Any, ...]) -> T:
        try:
            try:
                return await self._once(unit, parameters)
            except LostError:
                # An idle connection may have been cut. A read can be repeated.
                return await self._once(unit, parameters)
        except Exception as error:  # noqa: BLE001 - raised again, translated
            raise translate_error(unit.__name__, self.place, error) from error.__cause__

    async def _once(self, unit: Callable[..., Awaitable[T]], parameters: Sequence[Any]) -> T:
        async with self.pool.lend() as connection:
            return await unit(self._work(connection), *parameters)

    def _work(self, connection: PgConnection) -> PgTransaction:
        moment = None if self._clock is None else self._clock.now()
        return PgTransaction(connection, self._statements, self.throttle, moment)

    # -- writing -----------------------------------------------------------------------------

    async def _write(self, batch: list[Request[Any]]) -> None:
        """Run requests; one that fails does not fail the others."""
        for operation, group in group_by_operation(batch):
            if operation not in _JOINABLE or not await self._carry_out(operation, group):
                for request in group:
                    await self._carry_out(operation, [request])

    async def _carry_out(
        self, operation: Callable[..., Awaitable[list[Any]]], group: list[Request[Any]]
    ) -> bool:
        """Call an operation once for a group of requests, and give each its answers.

        Returns False if each has to be tried alone, since one of them may have failed all.
        """
        items = list(chain.from_iterable(request.items for request in group))
        try:
            answers = iter(await self._though_cancelled(operation, items))
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            failure = translate_error(operation.__name__, self.place, error)
            if isinstance(error, asyncio.CancelledError):
                failure = self._unknown(operation, "the backend was closed")
            if len(group) > 1 and not isinstance(failure, BackendConnectionError):
                return False
            for request in group:
                request.error = failure
        else:
            for request in group:
                request.answers = list(islice(answers, len(request.items)))
        return True

    def _unknown(self, operation: Callable[..., Any], cause: str) -> UnknownOutcomeError:
        message = f"{operation.__name__} on {self.place}: {cause}, and the outcome is unknown"
        return UnknownOutcomeError(message)

    async def _though_cancelled(
        self, operation: Callable[..., Awaitable[list[Any]]], items: list[Any]
    ) -> list[Any]:
        """Run an operation although its loop ends, for callers that clean up."""
        while True:
            try:
                return await self._safely(operation, items)
            except asyncio.CancelledError:
                if self._driver_loop.is_ending:
                    raise
                # Nothing was sent yet: `_safely` handles what was.

    async def _safely(
        self, operation: Callable[..., Awaitable[list[Any]]], items: list[Any]
    ) -> list[Any]:
        """Run an operation, again if it was rolled back because of another transaction."""
        is_elsewhere = False
        for _ in range(_TRIES):
            async with self.pool.lend() as connection:
                try:
                    return await self._tracked(operation, connection, items)
                except LostError:
                    lost = connection
                except asyncio.CancelledError:
                    if self._driver_loop.is_ending:
                        raise
                    lost = connection
                except Exception as error:
                    if is_read_only(error) and not is_elsewhere:
                        is_elsewhere = True
                        self.pool.renew()
                        continue
                    if not is_passing(error):
                        raise
                    await asyncio.sleep(random.uniform(0, _FIRST_PAUSE))
                    continue
            return await self._search(operation, lost, items)
        async with self.pool.lend() as connection:
            return await self._tracked(operation, connection, items)

    async def _tracked(
        self, unit: Callable[..., Awaitable[T]], connection: PgConnection, items: Sequence[Any]
    ) -> T:
        """Run an operation, and notify listeners of what it has changed."""
        work = self._work(connection)
        try:
            answers = await unit(work, items)
        except BaseException as error:
            self.throttle.notify_later(work.deferred)
            if work.may_be_committed(error):
                connection.terminate()
                raise LostError("the answer was lost") from error
            raise
        try:
            self.throttle.notify_later(
                (work.changed - work.notified) | (work.deferred - work.changed)
            )
            if work.changed:
                self._driver_loop.tell(partial(self._changed, work.changed))
        except Exception as error:  # noqa: BLE001 - what was committed is the answer
            _log.warning("cannot tell of a change: %s", type(error).__name__, error=error)
        return answers

    # -- searching for lost answers ----------------------------------------------------------

    async def _search(
        self, operation: Callable[..., Awaitable[list[Any]]], lost: PgConnection, items: list[Any]
    ) -> list[Any]:
        """Find out what an operation whose answer was lost has done; run it if nothing.

        Raises:
            UnknownOutcomeError: the server could not be asked in time.
        """
        give_up = asyncio.get_running_loop().time() + _SEARCH_SECONDS
        pause = _FIRST_PAUSE
        looking = _SEARCHES.get(operation)
        has_met_itself = False
        while True:
            known = False
            try:
                async with self.pool.lend() as connection:
                    await connection.end_process_of(lost)
                    if looking is not None:
                        answers: list[Any] | None = await self._tracked(looking, connection, items)
                        if answers is not None:
                            return answers
                    known, lost = True, connection
                    return await self._tracked(operation, connection, items)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and self._driver_loop.is_ending:
                    raise
                if is_read_only(error):
                    self.pool.renew()  # a replica may lag behind, and proves nothing
                elif known and not isinstance(error, LostError | asyncio.CancelledError):
                    # Where its process is unknown, the lost statement may commit after the look.
                    if has_met_itself or looking is None or not is_duplicate(error):
                        raise
                    has_met_itself = True
                if self.pool.has_hung_up or asyncio.get_running_loop().time() > give_up:
                    raise self._unknown(operation, "the connection was lost") from error
            with suppress(*(() if self._driver_loop.is_ending else (asyncio.CancelledError,))):
                await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    # -- notifications -----------------------------------------------------------------------

    async def _notify(self, channels: list[str]) -> None:
        try:
            async with self.pool.lend() as connection:
                await connection.fetch(_sql.NOTIFY, (self.throttle.token, channels))
        except Exception:  # noqa: BLE001 - listeners poll as well
            return

    async def close(self) -> None:
        """Send deferred notifications, and close the connections."""
        await self.throttle.notify_rest()
        await self.pool.close()
