"""Heartbeats: an OS thread renews the leases, whatever the event loop is doing."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq._logging import Log
from sitq.models import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sitq._loops import LoopRef
    from sitq.models import Lease
    from sitq.protocols import Backend, LeaseKeeper

__all__ = ["Heartbeats"]

_log: Final = Log(__name__)

_BEATS_PER_LEASE: Final = 3
# A task is given up before its lease ends by this share of it, since a renewal may be under way.
_MARGIN: Final = 0.2
# A process that stood still leaves its leases to the next beat for at least so many seconds.
_SHORTEST_PATIENCE: Final = 1.0


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
        self._ready = anyio.Event()
        self._ended = anyio.Event()
        self._error: BaseException | None = None
        # When `overdue` was last called, and until when it leaves the leases to the next beat.
        self._looked_at: float | None = None
        self._patient_until = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sitq-heartbeats", daemon=True)

    async def start(self) -> None:
        """Begin to beat; return once there is a connection for it.

        Raises:
            BackendError: the connection could not be opened.
        """
        try:
            self._thread.start()
        except BaseException:
            self._ended.set()
            raise
        await self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Stop beating; the thread ends by itself."""
        self._stopping = True
        self._wake.set()

    async def ended(self) -> BaseException | None:
        """Return once the thread has ended; what ended it before `stop` was called."""
        await self._ended.wait()
        return self._error

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
        """Return whether a lease is kept."""
        with self._lock:
            return lease in self._renewed

    def kept(self) -> list[Lease]:
        """Return all leases that are kept."""
        with self._lock:
            return list(self._renewed)

    def renew_now(self) -> None:
        """Renew all leases without waiting for the next beat."""
        self._wake.set()

    def behind(self) -> list[Lease]:
        """Return the leases that were not renewed for a lease less a margin."""
        too_old = self._clock.monotonic() - self._lease * (1 - _MARGIN)
        with self._lock:
            return [lease for lease, renewed in self._renewed.items() if renewed <= too_old]

    def overdue(self, interval: float) -> list[Lease]:
        """Return the leases that could not be renewed in time: their attempts must end.

        A process that stood still has had no chance to renew them: C code held the interpreter's
        lock, or the process was stopped. A lease whose time has run out can still be renewed if
        nobody has reclaimed it, so the next beat is waited for.

        Args:
            interval: seconds between two calls, where nothing holds the process up.
        """
        now, margin = self._clock.monotonic(), self._lease * _MARGIN
        if self._looked_at is not None and now - self._looked_at > interval + margin:
            self._patient_until = now + max(margin, _SHORTEST_PATIENCE)
            self._wake.set()
        self._looked_at = now
        return [] if now < self._patient_until else self.behind()

    def _run(self) -> None:
        try:
            keeper = self._backend.lease_keeper()
            try:
                # With no descriptor or no connection slot left, the first beat would come too late.
                keeper.renew((), self._lease)
                self._loop.call_soon(self._ready.set)
                self._beat(keeper)
            finally:
                keeper.close()
        except BaseException as error:  # noqa: BLE001 - raised by `Worker.start`
            self._error = error
        self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        self._ready.set()
        self._ended.set()

    def _beat(self, keeper: LeaseKeeper) -> None:
        """Renew the leases, again and again, until stopped."""
        period = self._lease / _BEATS_PER_LEASE
        pause = period
        failing = False
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
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                pause = period * random.uniform(0.1, 0.3)
                if not failing:
                    _log.warning("cannot renew %d leases: %s", len(leases), error)
                failing = True
                continue
            self._note(leases, states, asked_at)
            if failing:
                _log.info("leases are renewed again")
                failing = False

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
