"""`FaultyBackend`: a backend whose operations fail when a test says so."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from sitq.ids import TaskId
    from sitq.models import (
        Lease,
        LeaseState,
        Outcome,
        Progress,
        Reservation,
        Result,
        Task,
        TaskInfo,
    )
    from sitq.protocols import Backend, Clock, LeaseKeeper, Listener, Sweep, Topic

__all__ = ["FaultyBackend", "Operation"]

T = TypeVar("T")

Operation = Literal[
    "cancel",
    "close",
    "enqueue",
    "finish",
    "get_results",
    "load_task",
    "get_tasks",
    "open",
    "prune",
    "renew",
    "reserve",
    "set_progress",
    "sweep",
]


@dataclass
class _Fault:
    left: int
    error: BaseException
    after: bool


class FaultyBackend:
    """Passes everything on to another backend, but for the calls that are to fail.

    Args:
        backend: the one that does the work.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        # A lease keeper calls from its own thread.
        self._lock: Final = threading.Lock()
        self._faults: dict[Operation, list[_Fault]] = {}

    def __repr__(self) -> str:
        return f"FaultyBackend({self._backend!r})"

    def fail(
        self,
        operation: Operation,
        times: int = 1,
        *,
        error: BaseException,
        after: bool = False,
    ) -> None:
        """Have the next calls of an operation fail; what was asked for before comes first.

        Args:
            operation: the name of a method of `Backend`, or ``"renew"`` of its lease keepers.
            times: how many calls, 1 or more.
            error: what they raise.
            after: False: the work is not done. True: it is done, and the caller does not hear of
                it, as when a connection breaks at the wrong moment.

        Raises:
            ValidationError: there is no such operation, or ``times`` is less than 1.
        """
        if operation not in get_args(Operation):
            message = f"operation: {operation!r} is none of {', '.join(get_args(Operation))}"
            raise ValidationError(message)
        if times < 1:
            raise ValidationError("times: give 1 or more")
        with self._lock:
            self._faults.setdefault(operation, []).append(_Fault(times, error, after))

    def heal(self) -> None:
        """Forget all faults that are still to come."""
        with self._lock:
            self._faults.clear()

    def _next(self, operation: Operation) -> _Fault | None:
        """The fault of this call; one that comes before the work is raised at once."""
        with self._lock:
            faults = self._faults.get(operation)
            if not faults:
                return None
            fault = faults[0]
            fault.left -= 1
            if not fault.left:
                del faults[0]
        if not fault.after:
            raise fault.error
        return fault

    async def _do(self, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
        fault = self._next(operation)
        answer = await work()
        if fault is not None:
            raise fault.error
        return answer

    @property
    def clock(self) -> Clock:
        """The clock of the backend that does the work."""
        return self._backend.clock

    async def open(self) -> None:
        """See `sitq.protocols.Backend.open`."""
        await self._do("open", self._backend.open)

    async def close(self) -> None:
        """See `sitq.protocols.Backend.close`."""
        await self._do("close", self._backend.close)

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.Backend.enqueue`."""
        return await self._do("enqueue", lambda: self._backend.enqueue(tasks))

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """See `sitq.protocols.Backend.reserve`."""
        return await self._do(
            "reserve", lambda: self._backend.reserve(worker, queues, limit, lease)
        )

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """See `sitq.protocols.Backend.finish`."""
        return await self._do("finish", lambda: self._backend.finish(outcomes))

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        return await self._do("sweep", lambda: self._backend.sweep(max_crashes, limit))

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """See `sitq.protocols.Backend.prune`."""
        return await self._do("prune", lambda: self._backend.prune(older_than, limit))

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """See `sitq.protocols.Backend.cancel`."""
        return await self._do("cancel", lambda: self._backend.cancel(task_id))

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """See `sitq.protocols.Backend.set_progress`."""
        return await self._do("set_progress", lambda: self._backend.set_progress(lease, progress))

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """See `sitq.protocols.Backend.get_tasks`."""
        return await self._do("get_tasks", lambda: self._backend.get_tasks(task_ids))

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """See `sitq.protocols.Backend.get_results`."""
        return await self._do("get_results", lambda: self._backend.get_results(task_ids))

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """See `sitq.protocols.Backend.load_task`."""
        return await self._do("load_task", lambda: self._backend.load_task(task_id))

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        async with self._backend.listen(topic) as listener:
            yield listener

    def lease_keeper(self) -> LeaseKeeper:
        """See `sitq.protocols.Backend.lease_keeper`."""
        return _FaultyKeeper(self._backend.lease_keeper(), self._next)


class _FaultyKeeper:
    def __init__(
        self, keeper: LeaseKeeper, next_fault: Callable[[Operation], _Fault | None]
    ) -> None:
        self._keeper = keeper
        self._next = next_fault

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        fault = self._next("renew")
        states = self._keeper.renew(leases, seconds)
        if fault is not None:
            raise fault.error
        return states

    def close(self) -> None:
        self._keeper.close()
