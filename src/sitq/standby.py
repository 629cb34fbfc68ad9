"""The port of stores that know who waits for tasks.

Such a store hands a task to a worker in the very transaction that stores it, or as soon as it
hears of it. It is optional: without it a worker hears of a new task, and asks for it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sitq.protocols import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq.models import Reservation
    from sitq.protocols import Listener

__all__ = ["Standby", "StandbyBackend"]


class Standby(Protocol):
    """The wish of one worker that has nothing to do."""

    @property
    def asked_at(self) -> float:
        """When it was fulfilled, or a moment before, on the clock's ``monotonic()``."""
        ...

    async def end(self) -> Reservation | None:
        """Wish no more, and return what was reserved; to be called once.

        If the caller is cancelled, what was reserved is handed back.

        Returns:
            ``None`` if nothing was asked for yet.

        Raises:
            BackendError: the store was asked, and could not do it.
        """
        ...


@runtime_checkable
class StandbyBackend(Backend, Protocol):
    """A store that can reserve new tasks by itself."""

    def stand_by(
        self,
        worker: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        listener: Listener,
        fulfilled: Callable[[], object],
    ) -> Standby:
        """Reserve tasks as `reserve` does, as soon as there are new ones; in the loop.

        It is fulfilled once: by what this instance stores, as soon as it gives a task; or by the
        news that others have stored some, whatever it gives then. What becomes due with time is
        not waited for. Tasks that are reserved in the transaction that stores them need not be
        told to those who listen for tasks.

        Args:
            worker: as for `reserve`, and so are ``queues``, ``limit`` and ``lease``.
            queues: see above.
            limit: see above.
            lease: see above.
            listener: the worker's own for tasks; it need not hear of news that fulfil the wish.
            fulfilled: called in the loop once the wish is fulfilled; `Standby.end` has the rest.
        """
        ...
