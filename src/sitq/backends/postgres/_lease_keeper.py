"""Lease keepers: heartbeats from an event loop and a connection of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from sitq.backends._driver_loop import start_driver_thread, stop_driver_thread, when_cancelled
from sitq.backends.postgres import _admin
from sitq.backends.postgres._connection import connect
from sitq.backends.postgres._errors import LostError, is_read_only, translate_error
from sitq.backends.postgres._operations import renew
from sitq.errors import BackendBusyError, BackendConnectionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq._loops import LoopThread
    from sitq.administration import WorkerOrders, WorkerReport
    from sitq.backends._driver_loop import DriverLoop
    from sitq.backends.postgres._connection import PgConnection
    from sitq.backends.postgres._operation_runner import OperationRunner
    from sitq.backends.postgres._operations import PgTransaction
    from sitq.backends.postgres._pool import Pool
    from sitq.models import Lease, LeaseState

__all__ = ["KEEPER_SECONDS", "PostgresLeaseKeeper"]

T = TypeVar("T")

# A heartbeat gives up early, to be tried again with the next beat.
KEEPER_SECONDS = 5.0


class PostgresLeaseKeeper:
    """Renews leases over a connection of its own, made by the first renewal.

    If the server has no connection left for it, it borrows one of the pool's, in their loop.
    """

    def __init__(self, driver_loop: DriverLoop, pool: Pool, runner: OperationRunner) -> None:
        self._driver_loop = driver_loop
        self._pool = pool
        self._runner = runner
        self._target = pool.target._replace(timeout=KEEPER_SECONDS)
        self._thread: LoopThread | None = None
        self._connection: PgConnection | None = None

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        if not leases:
            self._over_own("renew", None)
            return []
        return self._keep("renew", partial(renew, leases=leases, seconds=seconds))

    def report(self, report: WorkerReport) -> WorkerOrders:
        """See `sitq.administration.WorkerKeeper.report`."""
        return self._keep("report", partial(_admin.report, worker=report))

    def deregister(self, worker_id: str) -> None:
        """See `sitq.administration.WorkerKeeper.deregister`."""
        self._keep("deregister", partial(_admin.deregister, worker_id=worker_id))

    def _keep(self, name: str, operation: Callable[[PgTransaction], Awaitable[T]]) -> T:
        """Run an operation that does no harm if it runs twice."""

        async def borrow() -> T:
            async with self._pool.lend() as connection:
                return await operation(self._runner.transaction(connection))

        try:
            return cast("T", self._over_own(name, operation))
        except (BackendBusyError, BackendConnectionError) as error:
            if self._connection is not None:
                raise
            failure = error
        try:
            return self._driver_loop.submit(borrow).result(KEEPER_SECONDS)
        except Exception:  # noqa: BLE001 - why there is no connection of its own says more
            raise failure from failure.__cause__

    def _over_own(
        self, name: str, operation: Callable[[PgTransaction], Awaitable[T]] | None
    ) -> T | None:
        """Run an operation over the keeper's own connection; ``None``: only connect."""
        if self._thread is None:
            self._thread = start_driver_thread("sitq-postgres-heartbeats")
            self._thread.submit(when_cancelled(self._terminate))
        future = self._thread.submit(self._run_twice(operation))
        try:
            return future.result(3 * KEEPER_SECONDS)
        except TimeoutError:
            future.cancel()
            self.close()
            message = f"{name} on {self._runner.place}: the server did not answer in time"
            raise BackendConnectionError(message) from None
        except Exception as error:  # noqa: BLE001 - raised as what it means
            failure = translate_error(name, self._runner.place, error)
            raise failure from failure.__cause__

    async def _run_twice(
        self, operation: Callable[[PgTransaction], Awaitable[T]] | None
    ) -> T | None:
        try:
            return await self._run_once(operation)
        except Exception as error:
            if not isinstance(error, LostError) and not is_read_only(error):
                raise
            # The server has gone, or another one takes the writes now.
            self._terminate()
            return await self._run_once(operation)

    async def _run_once(
        self, operation: Callable[[PgTransaction], Awaitable[T]] | None
    ) -> T | None:
        if self._connection is None or self._connection.is_lost:
            self._connection = None
            self._connection = await connect(self._target)
        if operation is None:
            return None
        return await operation(self._runner.transaction(self._connection))

    def _terminate(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def close(self) -> None:
        """See `sitq.protocols.LeaseKeeper.close`."""
        thread, self._thread = self._thread, None
        if thread is not None:
            stop_driver_thread(thread)  # which closes the connection
