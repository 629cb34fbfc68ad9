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

__all__ = ["PendingReservation", "ReserveOnCommitBackend"]


class PendingReservation(Protocol):
    """A reservation that a worker with nothing to do has left with the store."""

    @property
    def asked_at(self) -> float:
        """When the store began to carry it out, by the clock's ``monotonic()``.

        The leases count from here for the worker. Read only if `end` has returned a reservation.
        """
        ...

    async def end(self) -> Reservation | None:
        """Take the reservation back, and return what it gave; called once, by the worker.

        Waits if it is being carried out. If the caller is cancelled, what was reserved is released
        as by `Outcome.release`.

        Returns:
            ``None`` if it was not carried out.

        Raises:
            BackendError: it was, and failed.
        """
        ...


@runtime_checkable
class ReserveOnCommitBackend(Backend, Protocol):
    """A store that can reserve new tasks by itself. A worker looks for this method."""

    def reserve_on_commit(
        self,
        worker: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
        listener: Listener,
        fulfilled: Callable[[], object],
    ) -> PendingReservation:
        """Have a reservation carried out, as `reserve` does it, when there are new tasks.

        It is carried out with each `enqueue` of this instance, in its transaction, until it gives a
        task; and once when others are heard to have stored some, whatever it gives then. What else
        makes a task due, such as time, a retry or a worker's end, is not waited for: the worker
        looks for that itself, and for what was stored before this call.

        Those who listen for tasks are told of all that stays: tasks for later, for other queues,
        or beyond the limit. Not of what was reserved as it was stored, and ``listener`` not of what
        the reservation is carried out for. Where several stand by, the first one comes first.

        Called in the loop; it does not wait for anything.

        Args:
            worker: as for `reserve`, and so are the next three.
            queues: where the tasks may be.
            limit: how many at most.
            lease: seconds.
            listener: the worker's own, of this instance's ``listen("tasks")``.
            fulfilled: called in the loop, later and once, when the worker is to call
                `PendingReservation.end`: the reservation gave something or failed, or others have
                stored tasks.
        """
        ...
