"""What stores do alike within a transaction of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sitq.backends._transactions._cancellation import CancellationGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sitq.backends._transactions._protocols import Executor, UserConnection
    from sitq.ids import TaskId
    from sitq.models import Lease, Task

__all__ = ["UserTransaction"]

S = TypeVar("S")
T = TypeVar("T")


class UserTransaction(ABC, Generic[S]):
    """The user's transaction, as `sitq.transactions.Transaction` says.

    Args:
        connection: the connection.
        place: the store, for texts.
        session: what is open of the backend, or an error.
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

    async def succeed(self, lease: Lease, value: bytes) -> bool:
        """See `sitq.transactions.Transaction.succeed`."""
        return await self._perform("complete", partial(self._complete, lease, value))

    async def _perform(self, name: str, work: Callable[[Executor, S], Coroutine[Any, Any, T]]) -> T:
        session = self._session()
        guard = CancellationGuard(interruptible=self._connection.interruptible)

        async def unit(executor: Executor) -> T:
            return await self._within(executor, session, work, guard)

        try:
            if self._connection.blocking:
                return await self._connection.run(unit)
            return await guard.settle(partial(self._connection.run, unit))
        except Exception as error:
            told = self._translated(name, error)
            if told is None:
                raise
            raise told from told.__cause__

    async def _check(self, executor: Executor, session: S) -> None:
        """Make sure, once, that the connection leads to the store.

        Raises:
            UsageError: it leads elsewhere.
        """
        if self._checked is not session:
            await self._find(executor, session)
            self._checked = session

    @abstractmethod
    async def _within(
        self,
        executor: Executor,
        session: S,
        work: Callable[[Executor, S], Coroutine[Any, Any, T]],
        guard: CancellationGuard,
    ) -> T:
        """Begin and check, in the order that the database takes, then work, or undo it."""

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
        """End an attempt well, if its epoch is the current one; tell if it was."""

    @abstractmethod
    def _translated(self, operation: str, error: Exception) -> BaseException | None:
        """An error of a driver's as one of sitq's; ``None``: it is none, and goes on as it is."""
