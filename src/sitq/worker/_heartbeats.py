"""Renew the leases in an OS thread, whatever the event loop is doing."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import anyio

from sitq._logging import Log, fields_of
from sitq.administration import AdminBackend
from sitq.models import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sitq.administration import WorkerKeeper
    from sitq.models import Lease
    from sitq.protocols import LeaseKeeper
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["Heartbeats"]

_log: Final = Log(__name__)

_BEATS_PER_LEASE: Final = 3
# An attempt is ended before its lease expires, by this share of the lease: a renewal may be under
# way.
_MARGIN: Final = 0.2
# After the process stood still, the next beat has at least so many seconds to renew the leases.
_SHORTEST_PATIENCE: Final = 1.0


class Heartbeats:
    """Renews all leases of one worker.

    ``notify`` is called in the loop with each lease that is lost or whose task is to be cancelled.
    """

    def __init__(self, runtime: WorkerRuntime, notify: Callable[[Lease, LeaseState], None]) -> None:
        self._backend = runtime.backend
        self._monotonic = runtime.monotonic
        self._lease = runtime.options.lease
        self._loop = runtime.loop
        self._extra = fields_of(runtime.worker_id)
        self._notify = notify
        self._events = runtime.events
        # Report the worker to a store that knows workers, and sign it off.
        self._report: Callable[[WorkerKeeper], object] | None = None
        self._deregister: Callable[[WorkerKeeper], object] | None = None
        self._renewed: dict[Lease, float] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._ready = anyio.Event()
        self._ended = anyio.Event()
        self._error: BaseException | None = None
        # When `overdue` was last called, and until when it waits for the next beat.
        self._looked_at: float | None = None
        self._stall_grace_until = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sitq-heartbeats", daemon=True)

    def report_by(
        self, report: Callable[[WorkerKeeper], object], deregister: Callable[[WorkerKeeper], object]
    ) -> None:
        """Report the worker with each beat, and sign it off, if the store knows workers."""
        if isinstance(self._backend, AdminBackend):
            self._report, self._deregister = report, deregister

    async def start(self) -> None:
        """Start the thread; return once it has a connection.

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
        """Stop renewing; the thread then ends by itself."""
        self._stopping = True
        self._wake.set()

    async def ended(self) -> BaseException | None:
        """Wait until the thread has ended; return the error that ended it, if any."""
        await self._ended.wait()
        return self._error

    def add(self, leases: Iterable[Lease], asked_at: float) -> None:
        """Renew these leases from now on; they were requested at a monotonic time."""
        renewed = dict.fromkeys(leases, asked_at)
        with self._lock:
            self._renewed.update(renewed)

    def remove(self, leases: Iterable[Lease]) -> None:
        """Renew these leases no longer."""
        with self._lock:
            for lease in leases:
                self._renewed.pop(lease, None)

    def keeps(self, lease: Lease) -> bool:
        """Return whether a lease is renewed."""
        with self._lock:
            return lease in self._renewed

    def kept(self) -> list[Lease]:
        """Return all leases that are renewed."""
        with self._lock:
            return list(self._renewed)

    def renew_now(self) -> None:
        """Renew all leases without waiting for the next beat."""
        self._wake.set()

    def behind(self) -> list[Lease]:
        """Return the leases that are about to expire: a margin of their time is left, or less."""
        too_old = self._monotonic() - self._lease * (1 - _MARGIN)
        with self._lock:
            return [lease for lease, renewed in self._renewed.items() if renewed <= too_old]

    def overdue(self, interval: float) -> list[Lease]:
        """Return the leases that could not be renewed in time. Their attempts must end.

        A process that stood still could not renew them: C code held the interpreter's lock, or
        the process was stopped. An expired lease can still be renewed until a sweep reclaims it.
        So after a standstill the method waits for the next beat. While the process runs normally,
        it is called every ``interval`` seconds.
        """
        now, margin = self._monotonic(), self._lease * _MARGIN
        if self._looked_at is not None and now - self._looked_at > interval + margin:
            self._stall_grace_until = now + max(margin, _SHORTEST_PATIENCE)
            self._wake.set()
        self._looked_at = now
        return [] if now < self._stall_grace_until else self.behind()

    def _run(self) -> None:
        try:
            keeper = self._backend.lease_keeper()
            try:
                # An exhausted limit of descriptors or connections shows now, not at the first beat.
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
        """Renew the leases periodically, and report the worker, until stopped."""
        period = self._lease / _BEATS_PER_LEASE
        pause = 0.0 if self._report is not None else period
        failures = 0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._stopping:
                break
            pause = period
            with self._lock:
                leases = list(self._renewed)
            asked_at = self._monotonic()
            try:
                if leases:
                    self._note(leases, keeper.renew(leases, self._lease), asked_at)
                if self._report is not None:
                    self._report(cast("WorkerKeeper", keeper))
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                pause = period * random.uniform(0.1, 0.3)
                failures += 1
                if failures == 1:
                    message = "cannot renew %d leases: %s"
                    _log.warning(message, len(leases), error, extra=self._extra)
                if self._events is not None:
                    failed = partial(self._events.store_failed, "renew leases", failures, error)
                    self._loop.call_soon(failed)
                continue
            if failures:
                _log.info("leases are renewed again", extra=self._extra)
                failures = 0
        if self._deregister is not None:
            with suppress(Exception):  # a sweep removes it
                self._deregister(cast("WorkerKeeper", keeper))

    def _note(self, leases: list[Lease], states: list[LeaseState], asked_at: float) -> None:
        notified = []
        with self._lock:
            for lease, state in zip(leases, states, strict=True):
                if lease not in self._renewed:
                    continue
                if state in {LeaseState.HELD, LeaseState.CANCEL_REQUESTED}:
                    self._renewed[lease] = asked_at
                if state in {LeaseState.LOST, LeaseState.CANCEL_REQUESTED}:
                    notified.append((lease, state))
        for lease, state in notified:
            self._loop.call_soon(partial(self._notify, lease, state))
