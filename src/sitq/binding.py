"""`TransactionQueue`: a queue that stores through a connection of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.enqueueing import EnqueueMethods, Producer
from sitq.errors import UsageError
from sitq.transactions import TransactionalBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq.enqueueing import TaskFactory
    from sitq.ids import TaskId
    from sitq.models import Task
    from sitq.protocols import Backend
    from sitq.transactions import AnyConnection, Transaction

__all__ = ["TransactionQueue", "joined"]


class TransactionQueue(EnqueueMethods):
    """A queue within one transaction of the user's, from `TaskQueue.bind`.

    What is enqueued exists if and only if the transaction commits. Bind again for the next one:
    a connection that opens transactions by itself may also be bound once for all of them.

    Args:
        backend: the store, for a ``repr``.
        factory: makes the tasks.
        transaction: what writes through the user's connection.
        use: makes sure that the store is open.
    """

    def __init__(
        self,
        backend: Backend,
        factory: TaskFactory,
        transaction: Transaction,
        use: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__(Producer(factory, self._store))
        self._backend: Final = backend
        self._transaction: Final = transaction
        self._use: Final = use

    def __repr__(self) -> str:
        return f"TransactionQueue({self._backend!r})"

    async def _store(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        await self._use()
        return await self._transaction.enqueue(tasks) if tasks else []


def joined(backend: Backend, connection: AnyConnection) -> Transaction:
    """What writes to a store through a connection of the user's.

    Raises:
        UsageError: the store cannot, or not through a connection of this kind.
    """
    if not isinstance(backend, TransactionalBackend):
        raise UsageError(f"bind: {backend!r} cannot store within a transaction of yours")
    return backend.join(connection)
