"""`SQLiteBackend`: tasks and results in one SQLite file."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from sitq._builtin_types import plain
from sitq.backends._admin_facade import AdminMethods
from sitq.backends._capabilities import UsesDatabaseThread
from sitq.backends._facade import SQLBackend
from sitq.backends._open_counter import OpenCounter
from sitq.backends._operations import SweepRequest
from sitq.backends.sqlite import _operations
from sitq.backends.sqlite._rows import to_micros
from sitq.backends.sqlite._session import OPERATIONS, SQLiteSession
from sitq.backends.sqlite._user_transaction import bind
from sitq.clock import checked_clock
from sitq.errors import BackendError, ValidationError
from sitq.protocols import Sweep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.administration import WorkerKeeper
    from sitq.ids import TaskId
    from sitq.models import Result, Task
    from sitq.protocols import Clock, Listener, Topic
    from sitq.transactions import AnyConnection, Transaction

__all__ = ["SQLiteBackend"]


class SQLiteBackend(UsesDatabaseThread, AdminMethods, SQLBackend[SQLiteSession]):
    """A store in one SQLite file, shared by any number of processes of one machine.

    The file is created with mode 0600, together with ``-wal``, ``-shm`` and ``-bell`` beside it.
    ``":memory:"`` is a database private to the instance; it ends with the last `close`.

    Args:
        path: the file. Its folder must exist; symbolic links are refused.
        synchronous: ``"FULL"``: what was acknowledged also survives a power cut. ``"NORMAL"``:
            it survives the death of every process; a power cut may undo the last moments.
        clock: the clock to judge by; the system's unless given.

    Raises:
        ValidationError: a parameter is not of its type.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "sitq.db",
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        clock: Clock | None = None,
    ) -> None:
        self._path: Final = _checked_path(path)
        if synchronous not in ("FULL", "NORMAL"):
            message = f"synchronous: give 'FULL' or 'NORMAL' (got {type(synchronous).__name__})"
            raise ValidationError(message)
        self._synchronous: Final = synchronous
        super().__init__(
            checked_clock(clock),
            OpenCounter(self.__repr__, self._session, "they may share the file"),
            OPERATIONS,
            _operations.finish,
        )

    def __repr__(self) -> str:
        return f"SQLiteBackend({self._path!r}, synchronous={self._synchronous!r})"

    def _session(self, loop: LoopRef) -> SQLiteSession:
        return SQLiteSession(loop, self._path, self._synchronous, self._clock)

    def enqueue_blocking(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.BlockingBackend.enqueue_blocking`."""
        database = self._open_counter.use_from_thread().database
        return database.write_blocking(_operations.enqueue, (tasks,))[0]

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        asked_at = self._clock.now()
        database = self._open_counter.use().database
        with suppress(BackendError):  # it stays to be done, and what is due is due all the same
            await database.flush()
            await database.shorten_log()
        if not await database.read(_operations.sweep_is_due):
            return Sweep(0, 0, 0)
        request = SweepRequest(max_crashes, limit, to_micros(asked_at))
        return (await database.write(_operations.sweep, (request,)))[0]

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """See `sitq.protocols.Backend.get_results`."""
        state = self._open_counter.use()
        fresh = state.fresh_results.take(task_ids)
        if fresh is not None:
            return fresh
        return await state.database.read(_operations.get_results, task_ids)

    def lease_keeper(self) -> WorkerKeeper:
        """See `sitq.administration.AdminBackend.lease_keeper`."""
        return self._open_counter.use_from_thread().lease_keeper()

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        with self._open_counter.use().listen(topic) as listener:
            yield listener

    def join(self, connection: AnyConnection) -> Transaction:
        """See `sitq.transactions.TransactionalBackend.join`."""
        return bind(connection, self._path, self._open_counter.use_from_thread)


def _checked_path(path: str | os.PathLike[str]) -> str:
    try:
        text = plain(os.fspath(path))
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        kind = "one that no file can have" if isinstance(text, str) else type(path).__name__
        message = f"path: give the file's path as str or os.PathLike (got {kind})"
        raise ValidationError(message)
    return text
