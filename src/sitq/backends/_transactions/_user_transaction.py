"""The base of both stores' transactions on users' connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sitq.backends._transactions._cancellation import CancellationGuard, savepoint

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sitq.backends._transactions._user_connection import Executor, UserConnection
    from sitq.ids import TaskId
    from sitq.models import Lease, Task

__all__ = ["UserTransaction"]

S = TypeVar("S")
T = TypeVar("T")


class UserTransaction(ABC, Generic[S]):
    """A transaction on a user's connection; see `sitq.transactions.Transaction`.

    Args:
        connection: the user's connection.
        place: the name of the store, for errors.
        session: returns the open session of the backend, or raises.
    """

    def __init__(self, connection: UserConnection, place: str, session: Callable[[], S]) -> None:
        self._connection: Final = connection
        self._place: Final = place
        self._session: Final = session
        self._checked: S | None = None

    @property
    def blocking(self) -> bool:
        """See `sitq.transactions.Transaction.blocking`."""
        return self._connection.blocking

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.transactions.Transaction.enqueue`."""
        return await self._perform("enqueue", partial(self._store, tasks)) if tasks else []

    async def complete(self, lease: Lease, value: bytes) -> bool:
        """See `sitq.transactions.Transaction.complete`."""
        return await self._perform("complete", partial(self._complete, lease, value))

    async def _perform(self, name: str, work: Callable[[Executor, S], Coroutine[Any, Any, T]]) -> T:
        session = self._session()
        guard = CancellationGuard(interruptible=self._connection.interruptible)

        async def unit(executor: Executor) -> T:
            await self._begin(executor, session)
            within = partial(self._within, executor, session, work)
            return await savepoint(executor, within, guard)

        try:
            if self._connection.blocking:
                return await self._connection.run(unit)
            return await guard.settle(partial(self._connection.run, unit))
        except Exception as error:
            translated = self._translated(name, error)
            if translated is None:
                raise
            raise translated from translated.__cause__

    async def _check(self, executor: Executor, session: S) -> None:
        """Check, once, that the connection leads to the store.

        Raises:
            UsageError: it leads elsewhere.
        """
        if self._checked is not session:
            await self._find(executor, session)
            self._checked = session

    async def _begin(self, executor: Executor, session: S) -> None:  # noqa: ARG002 - for stores
        """Make sure that a transaction is open."""
        await executor.begin()

    async def _within(
        self,
        executor: Executor,
        session: S,
        work: Callable[[Executor, S], Coroutine[Any, Any, T]],
    ) -> T:
        """Do the work, within a savepoint."""
        return await work(executor, session)

    @abstractmethod
    async def _find(self, executor: Executor, session: S) -> None:
        """Look for the store behind the connection.

        Raises:
            UsageError: it is not there.
        """

    @abstractmethod
    async def _store(
        self, tasks: Sequence[Task], executor: Executor, session: S
    ) -> list[TaskId[Any]]:
        """Store tasks."""

    @abstractmethod
    async def _complete(self, lease: Lease, value: bytes, executor: Executor, session: S) -> bool:
        """Store the success of an attempt; return False if its epoch is not current."""

    @abstractmethod
    def _translated(self, operation: str, error: Exception) -> BaseException | None:
        """Return a driver's error as one of sitq's; ``None`` for any other error."""
