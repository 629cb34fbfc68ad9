"""Heartbeats: an OS thread renews the leases, whatever the event loop is doing."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq.models import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sitq._loops import LoopRef
    from sitq.models import Lease
    from sitq.protocols import Backend

__all__ = ["Heartbeats"]

_log: Final = Log(__name__)

_BEATS_PER_LEASE: Final = 3
# A task is given up before its lease ends by this share of it, since a renewal may be under way.
_MARGIN: Final = 0.2


class Heartbeats:
    """Renews all leases of one worker.

    Args:
        backend: an open backend.
        lease: seconds that a lease lasts.
        loop: the worker's loop.
        tell: called in the loop with each lease that is lost or whose task is to end.
    """

    def __init__(
        self,
        backend: Backend,
        lease: float,
        loop: LoopRef,
        tell: Callable[[Lease, LeaseState], None],
    ) -> None:
        self._backend = backend
        self._clock = backend.clock
        self._lease = lease
        self._loop = loop
        self._tell = tell
        self._renewed: dict[Lease, float] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sitq-heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; the thread ends by itself."""
        self._stopping = True
        self._wake.set()

    def join(self) -> None:
        """Block until the thread has ended."""
        self._thread.join()

    def add(self, leases: Iterable[Lease], asked_at: float) -> None:
        """Keep leases that were asked for at ``asked_at`` on the monotonic clock."""
        renewed = dict.fromkeys(leases, asked_at)
        with self._lock:
            self._renewed.update(renewed)

    def remove(self, leases: Iterable[Lease]) -> None:
        """Keep leases no longer."""
        with self._lock:
            for lease in leases:
                self._renewed.pop(lease, None)

    def keeps(self, lease: Lease) -> bool:
        """Tell if a lease is kept."""
        with self._lock:
            return lease in self._renewed

    def beat_now(self) -> None:
        """Renew all leases without waiting for the next beat."""
        self._wake.set()

    def overdue(self) -> list[Lease]:
        """The leases that could not be renewed in time: they must be taken for lost."""
        too_old = self._clock.monotonic() - self._lease * (1 - _MARGIN)
        with self._lock:
            return [lease for lease, renewed in self._renewed.items() if renewed <= too_old]

    def _run(self) -> None:
        keeper = self._backend.lease_keeper()
        period = self._lease / _BEATS_PER_LEASE
        pause = period
        failing = False
        try:
            while True:
                self._wake.wait(pause)
                self._wake.clear()
                if self._stopping:
                    return
                pause = period
                with self._lock:
                    leases = list(self._renewed)
                if not leases:
                    continue
                asked_at = self._clock.monotonic()
                try:
                    states = keeper.renew(leases, self._lease)
                except Exception as error:  # noqa: BLE001 - a store in trouble never ends a worker
                    if not failing:
                        _log.warning("cannot renew %d leases: %s", len(leases), error)
                    failing = True
                    pause = period * random.uniform(0.1, 0.3)
                    continue
                if failing:
                    _log.info("leases are renewed again")
                    failing = False
                self._note(leases, states, asked_at)
        finally:
            keeper.close()

    def _note(self, leases: list[Lease], states: list[LeaseState], asked_at: float) -> None:
        told = []
        with self._lock:
            for lease, state in zip(leases, states, strict=True):
                if lease not in self._renewed:
                    continue
                if state in {LeaseState.HELD, LeaseState.CANCEL_REQUESTED}:
                    self._renewed[lease] = asked_at
                if state in {LeaseState.LOST, LeaseState.CANCEL_REQUESTED}:
                    told.append((lease, state))
        for lease, state in told:
            self._loop.call_soon(partial(self._tell, lease, state))
