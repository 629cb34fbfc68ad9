"""Lease keepers: heartbeats from an event loop and a connection of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.backends._driver_loop import start_driver_thread, stop_driver_thread, when_cancelled
from sitq.backends.postgres._connection import connect
from sitq.backends.postgres._dsn import redacted_dsn
from sitq.backends.postgres._errors import LostError, is_read_only, translate_error
from sitq.backends.postgres._operations import PgTransaction, renew
from sitq.errors import BackendBusyError, BackendConnectionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Future

    from sitq._loops import LoopThread
    from sitq.backends.postgres._connection import ConnectTarget, PgConnection
    from sitq.backends.postgres._notify_throttle import NotifyThrottle
    from sitq.backends.postgres._sql import Statements
    from sitq.models import Lease, LeaseState
    from sitq.protocols import Clock

    Borrow = Callable[
        [Callable[[PgConnection], Awaitable[list[LeaseState]]]], Future[list[LeaseState]]
    ]

__all__ = ["KEEPER_SECONDS", "PostgresLeaseKeeper"]

# A heartbeat gives up early, to be tried again with the next beat.
KEEPER_SECONDS = 5.0


class PostgresLeaseKeeper:
    """Renews leases over a connection of its own, made by the first renewal.

    Where there cannot be one any more, it borrows one of the pool's.

    Args:
        target: what to connect to.
        statements: the statements for the schema.
        throttle: notifies those who listen.
        clock: a test's clock; ``None``: the server's counts.
        borrow: does some work over a connection of the pool's, in the pool's loop.
    """

    def __init__(
        self,
        target: ConnectTarget,
        statements: Statements,
        throttle: NotifyThrottle,
        clock: Clock | None,
        borrow: Borrow,
    ) -> None:
        self._target = target._replace(timeout=KEEPER_SECONDS)
        self._statements = statements
        self._throttle = throttle
        self._clock = clock
        self._borrow = borrow
        self._thread: LoopThread | None = None
        self._connection: PgConnection | None = None

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        try:
            return self._over_own_connection(leases, seconds)
        except (BackendBusyError, BackendConnectionError) as error:
            if self._connection is not None or not leases:
                raise
            failure = error
        # The server has no connection left for us, say; one of the pool's is there already.
        try:
            return self._borrow(lambda connection: self._renew(connection, leases, seconds)).result(
                KEEPER_SECONDS
            )
        except Exception:  # noqa: BLE001 - why there is no connection of its own says more
            raise failure from failure.__cause__

    def _over_own_connection(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        if self._thread is None:
            self._thread = start_driver_thread("sitq-postgres-heartbeats")
            self._thread.submit(when_cancelled(self._hang_up))
        future = self._thread.submit(self._renew_over_own(leases, seconds))
        try:
            return future.result(3 * KEEPER_SECONDS)
        except TimeoutError:
            future.cancel()
            self.close()
            message = (
                f"renew on {redacted_dsn(self._target.dsn)}: the server did not answer in time"
            )
            raise BackendConnectionError(message) from None
        except Exception as error:  # noqa: BLE001 - raised as what it means
            failure = translate_error("renew", redacted_dsn(self._target.dsn), error)
            raise failure from failure.__cause__

    async def _renew_over_own(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        try:
            return await self._renew_once_over_own(leases, seconds)
        except Exception as error:
            if not isinstance(error, LostError) and not is_read_only(error):
                raise
            # The server has gone, or another one takes the writes now. Renewing twice is fine.
            self._hang_up()
            return await self._renew_once_over_own(leases, seconds)

    async def _renew_once_over_own(
        self, leases: Sequence[Lease], seconds: float
    ) -> list[LeaseState]:
        if self._connection is not None and self._connection.is_lost:
            self._connection = None
        if self._connection is None:
            self._connection = await connect(self._target)
        return await self._renew(self._connection, leases, seconds) if leases else []

    async def _renew(
        self, connection: PgConnection, leases: Sequence[Lease], seconds: float
    ) -> list[LeaseState]:
        moment = None if self._clock is None else self._clock.now()
        return await renew(
            PgTransaction(connection, self._statements, self._throttle, moment), leases, seconds
        )

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def close(self) -> None:
        """See `sitq.protocols.LeaseKeeper.close`."""
        thread, self._thread = self._thread, None
        if thread is not None:
            stop_driver_thread(thread)  # which hangs up
