"""Run operations on the connections of one PostgreSQL store, in the driver's loop.

If the connection is lost before an answer arrives, the outcome is searched for.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq._logging import Log
from sitq.backends._operations import ADMIN_VERBS, ENQUEUE_UNIQUE, VERBS, operations_of
from sitq.backends.postgres import _admin, _operations
from sitq.backends.postgres._dsn import redacted_dsn
from sitq.backends.postgres._errors import (
    LostError,
    is_duplicate,
    is_passing,
    is_read_only,
    translate_error,
)
from sitq.backends.postgres._operations import PgTransaction
from sitq.errors import UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sitq.backends._driver_loop import DriverLoop
    from sitq.backends.postgres._connection import PgConnection
    from sitq.backends.postgres._pool import Pool
    from sitq.backends.postgres._sql import Statements
    from sitq.backends.postgres._wakeups import NotifyThrottle, ServerListeners
    from sitq.protocols import Clock

    Operation = Callable[[PgTransaction, Sequence[Any]], Awaitable[list[Any]]]

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "OPERATIONS", "OperationRunner"]

_log: Final = Log(__name__)

T = TypeVar("T")

# For how long to search for the outcome of a lost statement, and the pauses; in seconds.
_SEARCH_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5
# How often to try a statement that was rolled back because of another transaction.
_TRIES: Final = 6

OPERATIONS: Final = operations_of(_operations, (*VERBS, ENQUEUE_UNIQUE)) | operations_of(
    _admin, ADMIN_VERBS
)
"""The functions of the verbs."""
# How to find out what an operation whose answer was lost has done.
_SEARCHES: Final[Mapping[Callable[..., Any], Callable[..., Awaitable[Any]]]] = {
    operation: getattr(_operations, verb.recovered_by)
    for verb, operation in OPERATIONS.items()
    if verb.recovered_by is not None
}


class OperationRunner:
    """Run operations on a pool of connections, and notify listeners of what they have changed.

    With a ``clock``, operations get the time from it, else from the server.
    """

    def __init__(
        self,
        driver_loop: DriverLoop,
        pool: Pool,
        throttle: NotifyThrottle,
        listeners: ServerListeners,
        statements: Statements,
        clock: Clock | None,
    ) -> None:
        self.place: Final = redacted_dsn(pool.target.dsn)
        self._driver_loop = driver_loop
        self._pool = pool
        self._throttle = throttle
        self._listeners = listeners
        self._statements = statements
        self._clock = clock

    def transaction(self, connection: PgConnection) -> PgTransaction:
        """Return the transaction of one operation over a connection."""
        moment = None if self._clock is None else self._clock.now()
        return PgTransaction(connection, self._statements, self._throttle, moment)

    async def read(self, operation: Callable[..., Awaitable[T]], parameters: Sequence[Any]) -> T:
        """Run a read, again if its connection was lost."""
        try:
            try:
                return await self._read_once(operation, parameters)
            except LostError:
                return await self._read_once(operation, parameters)
        except Exception as error:  # noqa: BLE001 - raised again, translated
            raise translate_error(operation.__name__, self.place, error) from error.__cause__

    async def _read_once(
        self, operation: Callable[..., Awaitable[T]], parameters: Sequence[Any]
    ) -> T:
        async with self._pool.lend() as connection:
            return await operation(self.transaction(connection), *parameters)

    async def write(self, operation: Operation, items: Sequence[Any]) -> list[Any]:
        """Run an operation, again if it was rolled back because of another transaction.

        If the callers' loop ends meanwhile, it goes on, for callers that clean up.

        Raises:
            BackendError: it failed.
        """
        try:
            return await self._write(operation, items)
        except asyncio.CancelledError:
            raise self._unknown(operation, "the backend was closed") from None
        except Exception as error:  # noqa: BLE001 - raised as what it means
            failure = translate_error(operation.__name__, self.place, error)
            raise failure from failure.__cause__

    async def _write(self, operation: Operation, items: Sequence[Any]) -> list[Any]:
        tries = 0
        while True:
            connection = None
            try:
                if tries:
                    await asyncio.sleep(random.uniform(0, FIRST_PAUSE))
                async with self._pool.lend() as connection:
                    return await self._tracked(operation, connection, items)
            except LostError:
                if connection is None:
                    raise
            except asyncio.CancelledError:
                if self._driver_loop.is_ending:
                    raise
                if connection is None:  # nothing was sent yet
                    continue
            except Exception as error:
                tries += 1
                if not self._may_pass(error, tries):
                    raise
                continue
            return await self._search(operation, connection, items)

    def _may_pass(self, error: Exception, tries: int) -> bool:
        """Return whether nothing was changed, and another try may succeed."""
        if is_read_only(error) and tries == 1:
            self._pool.renew()
            return True
        return tries < _TRIES and is_passing(error)

    async def _tracked(
        self, operation: Operation, connection: PgConnection, items: Sequence[Any]
    ) -> list[Any]:
        """Run an operation once, and notify listeners of what it has changed."""
        work = self.transaction(connection)
        try:
            answers = await operation(work, items)
        except BaseException as error:
            self._throttle.notify_later(work.deferred)
            if work.may_be_committed(error):
                connection.terminate()
                raise LostError("the answer was lost") from error
            raise
        try:
            self._throttle.notify_later(
                (work.changed - work.notified) | (work.deferred - work.changed)
            )
            if work.changed:
                self._driver_loop.tell(partial(self._listeners.signal, work.changed))
        except Exception as error:  # noqa: BLE001 - what was committed is the answer
            _log.warning("cannot notify of a change: %s", type(error).__name__, error=error)
        return answers

    async def _search(
        self, operation: Operation, lost: PgConnection, items: Sequence[Any]
    ) -> list[Any]:
        """Find out what an operation whose answer was lost has done; run it if nothing.

        Raises:
            UnknownOutcomeError: the server could not be asked in time.
        """
        give_up = asyncio.get_running_loop().time() + _SEARCH_SECONDS
        pause = FIRST_PAUSE
        search = _SEARCHES.get(operation)
        found_own_duplicate = False
        while True:
            known = False
            try:
                async with self._pool.lend() as connection:
                    await connection.end_process_of(lost)
                    if search is not None:
                        answers: list[Any] | None = await self._tracked(search, connection, items)
                        if answers is not None:
                            return answers
                    known, lost = True, connection
                    return await self._tracked(operation, connection, items)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and self._driver_loop.is_ending:
                    raise
                if is_read_only(error):
                    self._pool.renew()  # a replica may lag behind, and proves nothing
                elif known and not isinstance(error, LostError | asyncio.CancelledError):
                    # Where its process is unknown, the lost statement may commit after the search.
                    if found_own_duplicate or search is None or not is_duplicate(error):
                        raise
                    found_own_duplicate = True
                if self._pool.is_terminated or asyncio.get_running_loop().time() > give_up:
                    raise self._unknown(operation, "the connection was lost") from error
            with suppress(*(() if self._driver_loop.is_ending else (asyncio.CancelledError,))):
                await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _unknown(self, operation: Callable[..., Any], cause: str) -> UnknownOutcomeError:
        message = f"{operation.__name__} on {self.place}: {cause}, and the outcome is unknown"
        return UnknownOutcomeError(message)
