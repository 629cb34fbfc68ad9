"""`PostgresBackend`: tasks and results in one schema of a PostgreSQL database."""

from __future__ import annotations

import re
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from sitq._builtin_types import plain
from sitq._task_batch import has_keys
from sitq.backends._admin_facade import AdminMethods
from sitq.backends._facade import SQLBackend
from sitq.backends._open_counter import OpenCounter
from sitq.backends._operations import ENQUEUE, ENQUEUE_UNIQUE, SWEEP, ReserveRequest
from sitq.backends.postgres import _operations
from sitq.backends.postgres._connection import ConnectTarget
from sitq.backends.postgres._dsn import redacted_dsn
from sitq.backends.postgres._operation_runner import OPERATIONS
from sitq.backends.postgres._session import PgSession, Settings
from sitq.backends.postgres._user_transaction import bind
from sitq.clock import checked_clock
from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sitq._loops import LoopRef
    from sitq.administration import WorkerKeeper
    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.protocols import Clock, Listener, Sweep, Topic
    from sitq.transactions import AnyConnection, Transaction

__all__ = ["PostgresBackend"]

# With the name of a topic around it, it has to fit into the 63 bytes of a channel's name.
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_MOST_CONNECTIONS: Final = 1000
_SHORTEST: Final = 0.001
_LONGEST: Final = 86_400
_MOST_TASKS: Final = 2**31 - 2


class PostgresBackend(AdminMethods, SQLBackend[PgSession]):
    """A store in one schema of a PostgreSQL database, shared by any number of machines.

    All comparisons of times are made by the server's clock.

    Args:
        dsn: where: ``postgresql://user:password@host:5432/database``, with libpq's options.
        schema: the schema; lower-case letters, digits and underscores, at most 48.
        pool_size: at most so many connections; one more is used to listen for changes, and
            each worker has one for heartbeats.
        migrate: whether `open` makes the schema, or brings an older one up to date. With False
            it refuses both; that needs no more rights than the work itself.
        prepared_statements: False behind a pooler that gives each transaction another
            connection, such as PgBouncer's ``pool_mode = transaction``.
        statement_timeout: seconds, from 0.001, that a statement may take before the server ends
            it, for a `BackendBusyError`; ``None``: what the server says.
        clock: a clock to judge by in tests; the server's unless given.

    Raises:
        ValidationError: a parameter is not of its type, or the URL is none.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "sitq",
        pool_size: int = 4,
        migrate: bool = True,
        prepared_statements: bool = True,
        statement_timeout: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        dsn, schema = plain(dsn), plain(schema)
        if not isinstance(dsn, str):
            raise ValidationError(f"dsn: give the URL as str (got {type(dsn).__name__})")
        self._place: Final = redacted_dsn(dsn)
        if not isinstance(schema, str) or _SCHEMA.fullmatch(schema) is None:
            message = "schema: give a name of at most 48 lower-case letters, digits and underscores"
            raise ValidationError(message)
        if isinstance(pool_size, bool) or not isinstance(pool_size, int):
            raise ValidationError(f"pool_size: give an int (got {type(pool_size).__name__})")
        if not 1 <= pool_size <= _MOST_CONNECTIONS:
            raise ValidationError(f"pool_size: give 1 to {_MOST_CONNECTIONS}")
        target = ConnectTarget(dsn, prepared_statements, _checked_timeout(statement_timeout))
        self._settings: Final = Settings(target, schema, pool_size, migrate, clock)
        super().__init__(
            checked_clock(clock),
            OpenCounter(self.__repr__, self._session, "they may share the schema"),
            OPERATIONS,
            _operations.finish_all,
        )

    def __repr__(self) -> str:
        return f"PostgresBackend({self._place!r}, schema={self._settings.schema!r})"

    def _session(self, loop: LoopRef) -> PgSession:
        return PgSession(loop, self._settings)

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.Backend.enqueue`."""
        return await self._call(ENQUEUE_UNIQUE if has_keys(tasks) else ENQUEUE, tasks)

    def _reserve_request(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> ReserveRequest:
        most = min(limit, _MOST_TASKS)
        return ReserveRequest(worker, tuple(queues), most, lease, secrets.randbits(63))

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        return await self._call(SWEEP, max_crashes, limit, time.monotonic())

    def lease_keeper(self) -> WorkerKeeper:
        """See `sitq.administration.AdminBackend.lease_keeper`."""
        return self._open_counter.use_from_thread().lease_keeper()

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        async with self._open_counter.use().listeners.listen(topic) as listener:
            yield listener

    def join(self, connection: AnyConnection) -> Transaction:
        """See `sitq.transactions.TransactionalBackend.join`."""
        return bind(connection, self._place, self._open_counter.use_from_thread)


def _checked_timeout(seconds: object) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        kind = type(seconds).__name__
        raise ValidationError(f"statement_timeout: give seconds as int or float (got {kind})")
    if not _SHORTEST <= seconds <= _LONGEST:
        message = f"statement_timeout: give {_SHORTEST} to {_LONGEST} seconds, or None for no limit"
        raise ValidationError(message)
    return float(seconds)
