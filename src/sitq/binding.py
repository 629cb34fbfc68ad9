"""`TransactionQueue`: a queue that stores through a connection of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.enqueueing import EnqueueMethods, Producer
from sitq.errors import UsageError
from sitq.transactions import TransactionalBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.protocols import Backend, Serializer
    from sitq.transactions import AnyConnection, Transaction

__all__ = ["TransactionQueue", "joined"]


class TransactionQueue(EnqueueMethods):
    """A queue within one transaction of the user's, from `TaskQueue.bind`.

    What is enqueued exists if and only if the transaction commits. Bind again for the next one:
    a connection that opens transactions by itself may also be bound once for all of them.

    Args:
        backend: the store.
        serializer: how payloads are encoded.
        transaction: what writes through the user's connection.
        use: makes sure that the store is open.
        pause: lets others have their turn, in the middle of a long batch.
    """

    def __init__(
        self,
        backend: Backend,
        serializer: Serializer,
        transaction: Transaction,
        use: Callable[[], Awaitable[object]],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(Producer(backend, backend.clock, serializer, self._store, pause))
        self._backend: Final = backend
        self._serializer: Final = serializer
        self._transaction: Final = transaction
        self._use: Final = use

    def __repr__(self) -> str:
        return f"TransactionQueue({self._backend!r})"

    def inline(self) -> TransactionQueue:
        """Return this for a caller with no event loop; the store is open already.

        Raises:
            UsageError: the connection is one that must be awaited.
        """
        if not self._transaction.blocking:
            raise UsageError("bind: this connection has to be awaited: use TaskQueue.bind")
        return TransactionQueue(
            self._backend, self._serializer, self._transaction, _nothing, _nothing
        )

    async def _store(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        await self._use()
        return await self._transaction.enqueue(tasks) if tasks else []


async def _nothing() -> None:
    pass


def joined(backend: Backend, connection: AnyConnection) -> Transaction:
    """What writes to a store through a connection of the user's.

    Raises:
        UsageError: the store cannot, or not through a connection of this kind.
    """
    if not isinstance(backend, TransactionalBackend):
        raise UsageError(f"bind: {backend!r} cannot store within a transaction of yours")
    return backend.join(connection)
