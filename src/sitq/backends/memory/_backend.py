"""`MemoryBackend`: who uses the reference store, one operation at a time."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.lowlevel

from sitq._loops import LoopRef
from sitq.backends._admin_facade import AdminMethods
from sitq.backends._open_counter import OpenCounter
from sitq.backends._operations import ADMIN_VERBS, SWEEP, operations_of
from sitq.backends.memory import _admin, _operations
from sitq.clock import checked_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sitq.administration import WorkerKeeper, WorkerOrders, WorkerReport
    from sitq.backends._operations import Verb
    from sitq.models import Lease, LeaseState
    from sitq.protocols import Clock, Listener, Topic

__all__ = ["MemoryBackend"]

T = TypeVar("T")

_OPERATIONS: Final = operations_of(_operations) | operations_of(_admin, ADMIN_VERBS)


class MemoryBackend(AdminMethods):
    """A store in the memory of one process, for tests and for tasks that may be lost.

    What it holds outlives `close`, but not the instance.

    Args:
        clock: the clock to judge by; the system's unless given.

    Raises:
        ValidationError: ``clock`` is not a clock.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Final = checked_clock(clock)
        self._rows: Final = _operations.Rows()
        self._listeners: dict[Topic, set[_Listener]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }
        # A lease keeper calls from its own thread.
        self._lock: Final = threading.Lock()
        self._open_counter: Final = OpenCounter(
            self.__repr__, partial(_Session, self._listeners), "each has tasks of its own"
        )

    def __repr__(self) -> str:
        return f"MemoryBackend(<{len(self._rows.by_id)} tasks>)"

    @property
    def clock(self) -> Clock:
        """Return the clock that the store's users share."""
        return self._clock

    async def open(self) -> None:
        """Count a user in.

        Raises:
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        await self._open_counter.enter()

    async def close(self) -> None:
        """Count a user out.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        await self._open_counter.leave()

    async def _call(self, verb: Verb[T], *arguments: Any) -> T:
        self._open_counter.use()
        asked_at = self._clock.now()
        await anyio.lowlevel.checkpoint()  # as with every store, the caller may be cancelled here
        now = self._clock.now()
        if verb is SWEEP:
            now = min(now, asked_at)
        with self._lock:
            answer: T = _OPERATIONS[verb](self._rows, now, *arguments)
            changed, self._rows.changed = self._rows.changed, set()
        for topic in changed:
            for listener in self._listeners[topic]:
                listener.changed.set()
        return answer

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        self._open_counter.use()
        listener = _Listener()
        self._listeners[topic].add(listener)
        try:
            yield listener
        finally:
            self._listeners[topic].discard(listener)

    def lease_keeper(self) -> WorkerKeeper:
        """See `sitq.administration.AdminBackend.lease_keeper`."""
        self._open_counter.use_from_thread()
        return _Keeper(self)

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """See `sitq.protocols.LeaseKeeper.renew`."""
        with self._lock:
            return _operations.renew(self._rows, self._clock.now(), leases, seconds)

    def report(self, report: WorkerReport) -> WorkerOrders:
        """See `sitq.administration.WorkerKeeper.report`."""
        with self._lock:
            return _admin.report(self._rows, self._clock.now(), report)

    def deregister(self, worker_id: str) -> None:
        """See `sitq.administration.WorkerKeeper.deregister`."""
        with self._lock:
            _admin.deregister(self._rows, self._clock.now(), worker_id)


class _Session:
    """What is open: the listeners, which belong to one event loop."""

    def __init__(self, listeners: dict[Topic, set[_Listener]], loop: LoopRef) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self._listeners = listeners

    async def connect(self) -> None:
        """Forget the listeners of another loop, which ended: nothing can wake them."""
        for topic, listeners in self._listeners.items():
            self._listeners[topic] = {each for each in listeners if each.loop.is_here}

    async def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _Listener:
    def __init__(self) -> None:
        self.loop = LoopRef()
        self.changed = anyio.Event()

    async def wait(self) -> None:
        await self.changed.wait()
        self.changed = anyio.Event()


class _Keeper:
    def __init__(self, backend: MemoryBackend) -> None:
        self.renew = backend.renew
        self.report = backend.report
        self.deregister = backend.deregister

    def close(self) -> None:
        pass
