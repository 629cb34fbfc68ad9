"""What a store sees of a connection that is not its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    Values = Mapping[str, object] | Sequence[object]

__all__ = ["DirectUserConnection", "Executor", "Row", "UserConnection"]

T = TypeVar("T")

Row = tuple[Any, ...]


class Executor(ABC):
    """Runs statements in the open transaction of one connection.

    Errors of the driver pass through as the driver raised them.
    """

    @abstractmethod
    async def begin(self) -> None:
        """Make sure that a transaction is open, or that the next statement opens one.

        Raises:
            UsageError: what is written now would be stored at once.
        """

    @abstractmethod
    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """Run a statement, and return the rows it gives.

        Its values are bound: by name (``:name``) on SQLite, by number (``$1``) on PostgreSQL.
        """


class UserConnection(ABC):
    """A user's connection, of one kind.

    ``kind`` is its name in errors, and ``database`` what it leads to, ``None`` for something else.
    If it is ``blocking``, nothing suspends. If it is ``interruptible``, it stays usable after a
    statement was cancelled.
    """

    kind: str
    blocking: bool = False
    interruptible: bool = False

    @property
    @abstractmethod
    def database(self) -> Literal["sqlite", "postgresql"] | None:
        """Return what the connection leads to."""

    @abstractmethod
    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """Run a unit of work, where the connection can be used: in its thread, say."""


class DirectUserConnection(UserConnection, Executor):
    """A connection whose statements run where its caller runs."""

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """See `UserConnection.run`."""
        return await work(self)
