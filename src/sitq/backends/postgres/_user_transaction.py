"""Tasks stored, and attempts ended, within a transaction of the user's in the same database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq.backends._transactions import UserTransaction, user_connection_of
from sitq.backends.postgres import _sql
from sitq.backends.postgres._errors import server_message, sqlstate_of, translate_error
from sitq.backends.postgres._rows import columns
from sitq.backends.postgres._wakeups import channels_of
from sitq.errors import SitqError, UsageError
from sitq.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sitq.backends._transactions import Executor, Row
    from sitq.backends.postgres._session import PgSession
    from sitq.models import Lease, Task
    from sitq.protocols import Topic
    from sitq.transactions import Transaction

__all__ = ["bind"]

T = TypeVar("T")

# The text of the notifications; differs from every instance's own token.
_BOUND: Final = "bound"
# Values of the types whose codecs are checked.
_SAMPLE: Final = (datetime(1970, 1, 1, tzinfo=UTC), 1, b"s")
_OWN_CODECS: Final = (
    "the connection has codecs of its own for text, timestamptz, bigint or bytea: "
    "use a connection without them"
)
_FAILED_BEFORE: Final = "25P02"


def bind(connection: object, place: str, session: Callable[[], PgSession]) -> Transaction:
    """Return what writes to the schema through a connection of the user's.

    Raises:
        UsageError: the connection is none that leads to PostgreSQL.
    """
    own = user_connection_of(connection)
    if own.database != "postgresql":
        message = f"bind: {own.kind} does not lead to PostgreSQL; the tasks are there"
        raise UsageError(message)
    return _PgUserTransaction(own, place, session)


class _PgUserTransaction(UserTransaction["PgSession"]):
    """A transaction on PostgreSQL."""

    async def _within(
        self,
        executor: Executor,
        session: PgSession,
        work: Callable[[Executor, PgSession], Coroutine[Any, Any, T]],
    ) -> T:
        # If it raises, the savepoint restores the user's path too.
        ((path, _),) = await executor.fetch(_sql.PIN_SEARCH_PATH)
        await self._check(executor, session)
        answer = await work(executor, session)
        await executor.fetch(_sql.RESTORE_SEARCH_PATH, (path,))
        return answer

    async def _find(self, executor: Executor, session: PgSession) -> None:
        schema = session.settings.schema
        ((is_there, *sample),) = await executor.fetch(_sql.IS_THERE, (schema,))
        if sample != [schema, *_SAMPLE]:
            raise UsageError(f"bind: {_OWN_CODECS}")
        if is_there:
            rows = await executor.fetch(session.statements[_sql.BIRTH])
            if [tuple(row) for row in rows] == session.birth:
                return
        raise UsageError(
            f"bind: the connection leads to another database than {self._place}: "
            "what must be committed together belongs in one database"
        )

    async def _store(
        self, tasks: Sequence[Task], executor: Executor, session: PgSession
    ) -> list[TaskId[Any]]:
        is_keyed = any(task.unique_key is not None for task in tasks)
        statement = _sql.INSERT_UNIQUE if is_keyed else _sql.INSERT_BATCH
        # Storing a task may expire the one that holds its key.
        topics: set[Topic] = {"tasks", "results"} if is_keyed else {"tasks"}
        rows = await _run_and_notify(executor, session, topics, statement, *columns(tasks))
        return [TaskId(holder) for holder in rows[0][0]] if is_keyed else [t.id for t in tasks]

    async def _complete(
        self, lease: Lease, value: bytes, executor: Executor, session: PgSession
    ) -> bool:
        batch = ([lease.task_id], [lease.epoch], [value])
        return bool(await _run_and_notify(executor, session, {"results"}, _sql.SUCCEED, *batch))

    def _translated(self, operation: str, error: Exception) -> BaseException | None:
        # No cause: the drivers' texts may quote rows and keys.
        return None if isinstance(error, SitqError) else _translated(operation, self._place, error)


async def _run_and_notify(
    executor: Executor, session: PgSession, topics: set[Topic], statement: str, *values: object
) -> list[Row]:
    """Run a statement that notifies listeners; the server does so at the commit."""
    clock = session.settings.clock
    channels = [
        channel for channel, each in channels_of(session.settings.schema).items() if each in topics
    ]
    moment = None if clock is None else clock.now()
    parameters = (moment, *values, _BOUND, channels)
    return await executor.fetch(session.statements[statement], parameters)


class _ServerError(Exception):
    """What the server said, in its first line only."""

    def __init__(self, error: BaseException, state: str) -> None:
        text = getattr(getattr(error, "diag", None), "message_primary", None)
        super().__init__(text or server_message(error).partition("\n")[0])
        self.sqlstate: Final = state


def _translated(operation: str, place: str, error: Exception) -> BaseException | None:
    """Return an error of any driver as one of sitq's; ``None`` for any other error."""
    state = sqlstate_of(error) or sqlstate_of(error.__cause__ or error)
    if state == _FAILED_BEFORE:
        return UsageError("bind: the transaction has failed before: roll it back")
    if state:
        return translate_error(operation, place, _ServerError(error, state))
    if isinstance(error, UnicodeError):
        return UsageError("bind: the connection's encoding cannot carry this: use UTF8")
    if isinstance(error, NotImplementedError):  # psycopg reads times in ISO form only
        return UsageError("bind: the connection has a DateStyle of its own: use ISO")
    if type(error).__module__.partition(".")[0] in {"asyncpg", "psycopg", "sqlalchemy"}:
        text = str(error).partition("\n")[0]
        return UsageError(f"bind: the connection cannot be used here: {text}")
    return None
