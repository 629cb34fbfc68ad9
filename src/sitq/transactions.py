"""The protocol of stores that can write within a transaction of the user's own.

It is optional: a store that has `TransactionalBackend.join` besides the methods of `Backend` can
be bound to (`TaskQueue.bind`), and its tasks can complete themselves within a transaction
(`TaskContext.complete_in`). Connections are described by protocols, so that type
checkers need no driver to be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from sitq.protocols import Backend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from sitq.ids import TaskId
    from sitq.models import Lease, Task

__all__ = [
    "AnyConnection",
    "AsyncConnection",
    "AsyncpgConnection",
    "SyncConnection",
    "Transaction",
    "TransactionalBackend",
]


class SyncConnection(Protocol):
    """A connection that blocks.

    ``sqlite3.Connection``, ``psycopg.Connection``, SQLAlchemy's ``Connection`` and ``Session``.
    """

    def commit(self) -> None:
        """Commit the transaction."""
        ...

    def rollback(self) -> None:
        """Roll the transaction back."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class AsyncConnection(Protocol):
    """A connection that is awaited.

    ``aiosqlite.Connection``, ``psycopg.AsyncConnection``, SQLAlchemy's ``AsyncConnection`` and
    ``AsyncSession``.
    """

    def commit(self) -> Awaitable[None]:
        """Commit the transaction."""
        ...

    def rollback(self) -> Awaitable[None]:
        """Roll the transaction back."""
        ...

    def close(self) -> Awaitable[None]:
        """Close the connection."""
        ...


class AsyncpgConnection(Protocol):
    """A connection of asyncpg's, from a pool or not: its transactions are objects of their own."""

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        ...

    def close(self) -> Awaitable[None]:
        """Close the connection."""
        ...


AnyConnection: TypeAlias = SyncConnection | AsyncConnection | AsyncpgConnection
"""A connection of any kind that sitq can write through."""


class Transaction(Protocol):
    """What a store does within the open transaction of a connection that is not its own.

    Its writes are stored if and only if the connection's owner commits, atomically with the
    owner's writes and as durably as that commit. Nothing is visible before the commit. Listeners
    are woken after it, where the store can detect it.

    The methods leave the transaction as they found it when they raise, a cancellation too. They
    begin one where the connection's next statement would have, and they never end one.

    They may be called from any thread or event loop that may use the connection, as long as the
    backend is open.

    Raises:
        UsageError: the connection leads to another database, is closed, belongs to another
            thread, or has no transaction open and would store at once what is written.
        BackendError: the store failed; the transaction may have to be rolled back.
    """

    @property
    def blocking(self) -> bool:
        """Return whether the methods never suspend, so that they work without an event loop."""
        ...

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Store tasks as `Backend.enqueue` does, all of them or none.

        A unique key counts as held also by what this transaction has stored itself. Where
        another open transaction has stored a task with the key, this one waits for its end.

        Args:
            tasks: the tasks; may be empty.
        """
        ...

    async def complete(self, lease: Lease, value: bytes) -> bool:
        """Record a success as `Backend.finish` does; return whether it was accepted.

        It is accepted if and only if the task is ``in_progress`` and the lease's epoch is its
        current one. From then until the transaction's end nothing else can end or reclaim the
        task, and its lease need not be renewed; after a rollback the lease is the current one as
        before, or may be reclaimed at once if its time has run out meanwhile.

        Args:
            lease: the lease of the attempt.
            value: the encoded result.
        """
        ...


@runtime_checkable
class TransactionalBackend(Backend, Protocol):
    """A store that can write within a transaction of the user's own."""

    def join(self, connection: AnyConnection) -> Transaction:
        """Return a `Transaction` on a connection. Neither it nor the backend has to be open yet.

        Args:
            connection: the user's connection to the store's database.

        Raises:
            UsageError: the store cannot write through a connection of this kind.
        """
        ...
