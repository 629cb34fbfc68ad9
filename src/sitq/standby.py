"""The port of stores that hand a task to a worker in the very transaction that stores it.

It is optional: without it a worker hears of a new task, and asks for it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sitq.protocols import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq.models import Reservation

__all__ = ["Standby", "StandbyBackend"]


class Standby(Protocol):
    """The wish of one worker that has nothing to do."""

    @property
    def asked_at(self) -> float:
        """When it was fulfilled, or a moment before, on the clock's ``monotonic()``."""
        ...

    async def end(self) -> Reservation:
        """Wish no more, and return what was reserved, if anything; to be called once.

        If the caller is cancelled, what was reserved is handed back.
        """
        ...


@runtime_checkable
class StandbyBackend(Backend, Protocol):
    """A store that can reserve what it stores at once."""

    def stand_by(
        self,
        worker: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        fulfilled: Callable[[], object],
    ) -> Standby | None:
        """Reserve tasks as `reserve` does, as soon as this instance stores some; in the loop.

        It is fulfilled once. What other instances store, and what becomes due with time, is not
        waited for. Tasks that are reserved in the transaction that stores them need not be told
        to those who listen for tasks.

        ``None``: it is not worth the effort, since nobody else has this instance open.

        Args:
            worker: as for `reserve`, and so are ``queues``, ``limit`` and ``lease``.
            queues: see above.
            limit: see above.
            lease: see above.
            fulfilled: called in the loop once something has been reserved; `Standby.end` has it.
        """
        ...
