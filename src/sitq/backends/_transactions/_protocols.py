"""What a store sees of a connection that is not its own: a link, and within it an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    Values = Mapping[str, object] | Sequence[object]

__all__ = ["Executor", "Row", "UserConnection"]

T = TypeVar("T")

Row = tuple[Any, ...]


class Executor(Protocol):
    """Runs statements in the open transaction of one connection.

    Errors of the driver pass through as the driver raised them.
    """

    async def begin(self) -> None:
        """Make sure that a transaction is open, or that the next statement opens one.

        Raises:
            UsageError: what is written now would be stored at once.
        """
        ...

    async def fetch(self, statement: str, values: Values = ()) -> list[Row]:
        """Run a statement, and return the rows it gives.

        Its values are bound: by name (``:name``) on SQLite, by number (``$1``) on PostgreSQL.
        """
        ...


class UserConnection(Protocol):
    """A user's connection, of one kind."""

    @property
    def kind(self) -> str:
        """What the connection is, for texts."""
        ...

    @property
    def blocking(self) -> bool:
        """True if nothing suspends."""
        ...

    @property
    def interruptible(self) -> bool:
        """True if a statement may be cancelled, and the connection goes on as before."""
        ...

    @property
    def database(self) -> Literal["sqlite", "postgresql"] | None:
        """What it leads to; ``None`` for something else."""
        ...

    async def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """Run a unit of work, where the connection can be used: in its thread, say."""
        ...
