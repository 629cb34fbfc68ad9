"""Tasks stored, and attempts ended, within a transaction of the user's on the same file."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from sitq._task_batch import concat, has_keys, ids_of
from sitq.backends._transactions import UserTransaction, user_connection_of
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._errors import is_busy, translate_error
from sitq.backends.sqlite._file import MEMORY
from sitq.backends.sqlite._rows import EXPIRED, to_micros
from sitq.errors import UsageError
from sitq.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq.backends._transactions import Executor
    from sitq.backends.sqlite._session import SQLiteSession
    from sitq.models import Lease, Task
    from sitq.transactions import Transaction

__all__ = ["bind"]

_READ_FIRST: Final = (
    "; if the transaction has read before, another writer may have committed since: "
    "begin it with BEGIN IMMEDIATE"
)


def bind(connection: object, path: str, session: Callable[[], SQLiteSession]) -> Transaction:
    """Return what writes to the file at ``path`` through a connection of the user's.

    Raises:
        UsageError: the connection is none that leads to a SQLite file, or the store is none.
    """
    if path == MEMORY:
        raise UsageError("bind: a database in memory has one connection only; use a file")
    link = user_connection_of(connection)
    if link.database != "sqlite":
        raise UsageError(f"bind: {link.kind} does not lead to a SQLite file; the tasks are in one")
    return _SQLiteUserTransaction(link, path, session)


class _SQLiteUserTransaction(UserTransaction["SQLiteSession"]):
    """A transaction on a SQLite file."""

    async def _begin(self, executor: Executor, session: SQLiteSession) -> None:
        await self._check(executor, session)
        await executor.begin()

    async def _find(self, executor: Executor, session: SQLiteSession) -> None:
        for _, name, path in await executor.fetch(_sql.DATABASES, {}):
            if _as_text(name) == "main" and path and session.is_at(os.fsdecode(path)):
                return
        raise UsageError(
            f"bind: the connection has another database open than {self._place}: "
            "what must be committed together belongs in one file"
        )

    async def _store(
        self, tasks: Sequence[Task], executor: Executor, session: SQLiteSession
    ) -> list[TaskId[Any]]:
        now = to_micros(session.clock.now())
        if has_keys(tasks):
            ids = [await _insert_unique(executor, session, task, now) for task in tasks]
        else:
            await executor.fetch(*_sql.insertion(concat((tasks,)), now))
            ids = ids_of(tasks)
        new = set(ids_of(tasks)).intersection(ids)
        if new:
            session.expect("tasks", new.pop())  # where one is to be seen, all are
        return ids

    async def _complete(
        self, lease: Lease, value: bytes, executor: Executor, session: SQLiteSession
    ) -> bool:
        values = {
            "id": lease.task_id,
            "epoch": lease.epoch,
            "value": value,
            "now": to_micros(session.clock.now()),
        }
        for (seq,) in await executor.fetch(_sql.SUCCEED_ONE, values):
            await executor.fetch(_sql.DELETE_LEASE, {"seq": seq})
            session.expect("results", lease.task_id)
            return True
        return False

    def _translated(self, operation: str, error: Exception) -> BaseException | None:
        if not isinstance(error, sqlite3.Error):
            return None
        translated: BaseException
        if isinstance(error, sqlite3.ProgrammingError):
            translated = UsageError(f"bind: the connection cannot be used here: {error}")
        else:
            translated = translate_error(operation, self._place, error)
            if is_busy(error):
                translated = type(translated)(f"{translated}{_READ_FIRST}")
        translated.__cause__ = error
        return translated


async def _insert_unique(
    executor: Executor, session: SQLiteSession, task: Task, now: int
) -> TaskId[Any]:
    values = _sql.values_of(task, now)
    if await executor.fetch(_sql.INSERT_UNIQUE_RETURNING, values):
        return task.id
    key = {"key": task.unique_key, "id": task.id, "now": now}
    ((holder, seq, change),) = await executor.fetch(_sql.KEY_HOLDER, key)
    holder_id = TaskId[Any](_as_text(holder))
    if change is None:
        return holder_id
    if _as_text(change) == "expire":
        await executor.fetch(_sql.SET_FINAL, {**EXPIRED, "seq": seq, "now": now})
        session.expect("results", holder_id)
    else:
        await executor.fetch(_sql.RELEASE_KEY, {"seq": seq})
    await executor.fetch(_sql.INSERT_UNIQUE_RETURNING, values)
    return task.id


def _as_text(value: str | bytes) -> str:
    """Return a text, also if the user's connection reads texts as bytes."""
    return value if isinstance(value, str) else bytes(value).decode()
