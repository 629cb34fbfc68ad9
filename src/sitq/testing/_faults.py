"""`FaultyBackend`: a backend whose operations fail when a test says so."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sitq.administration import AdminBackend
from sitq.backends._admin_facade import AdminMethods
from sitq.backends._facade import BackendMethods
from sitq.backends._operations import ADMIN_VERBS, VERBS
from sitq.backends._task_filters import ChangeRequest, RetryRequest
from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sitq.administration import WorkerKeeper, WorkerOrders, WorkerReport
    from sitq.backends._operations import Verb
    from sitq.models import Lease, LeaseState
    from sitq.protocols import Backend, Clock, Listener, Topic

    # At run time it has them where the wrapped backend has them.
    _Methods = AdminMethods
else:
    _Methods = BackendMethods

__all__ = ["OPERATIONS", "FaultyBackend"]

T = TypeVar("T")

_OF_KEEPERS: Final = ("deregister", "renew", "report")
OPERATIONS: Final = tuple(
    sorted(("close", "open", *_OF_KEEPERS, *(verb.name for verb in (*VERBS, *ADMIN_VERBS))))
)
"""What can be made to fail."""


@dataclass
class _Fault:
    left: int
    error: BaseException
    after: bool


class FaultyBackend(_Methods):
    """A backend that passes calls on to another one, except those that are to fail.

    It is an `AdminBackend` if the other one is.

    Args:
        backend: the one that does the work.
    """

    def __new__(cls, backend: Backend) -> Self:
        """Make one that has the methods of the wrapped backend."""
        return super().__new__(_administered(cls) if isinstance(backend, AdminBackend) else cls)

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        # A lease keeper calls from its own thread.
        self._lock: Final = threading.Lock()
        self._faults: dict[str, list[_Fault]] = {}

    def __repr__(self) -> str:
        return f"FaultyBackend({self._backend!r})"

    def fail(
        self,
        operation: str,
        times: int = 1,
        *,
        error: BaseException,
        after: bool = False,
    ) -> None:
        """Make the next calls of an operation fail, after the faults that were set before.

        Args:
            operation: the name of a method of `Backend` or `AdminBackend`; or of their lease
                keepers, ``"renew"``, ``"report"`` or ``"deregister"``.
            times: the number of calls, 1 or more.
            error: what they raise.
            after: False: the work is not done. True: it is done before the error is raised, as
                when a connection breaks before the answer comes.

        Raises:
            ValidationError: the operation does not exist, or ``times`` is less than 1.
        """
        if operation not in OPERATIONS:
            message = f"operation: {operation!r} is none of {', '.join(OPERATIONS)}"
            raise ValidationError(message)
        if times < 1:
            raise ValidationError("times: give 1 or more")
        with self._lock:
            self._faults.setdefault(operation, []).append(_Fault(times, error, after))

    def heal(self) -> None:
        """Remove all faults that have not been raised yet."""
        with self._lock:
            self._faults.clear()

    def _next(self, operation: str) -> _Fault | None:
        """Return the fault of this call; raise one that comes before the work."""
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

    async def _do(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        fault = self._next(operation)
        answer = await work()
        if fault is not None:
            raise fault.error
        return answer

    @property
    def clock(self) -> Clock:
        """Return the clock of the backend that does the work."""
        return self._backend.clock

    async def open(self) -> None:
        """See `sitq.protocols.Backend.open`."""
        await self._do("open", self._backend.open)

    async def close(self) -> None:
        """See `sitq.protocols.Backend.close`."""
        await self._do("close", self._backend.close)

    async def _call(self, verb: Verb[T], *arguments: Any) -> T:
        method: Callable[..., Awaitable[T]] = getattr(self._backend, verb.name)
        return await self._do(verb.name, _call_of(method, *arguments))

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[Listener]:
        """See `sitq.protocols.Backend.listen`."""
        async with self._backend.listen(topic) as listener:
            yield listener

    def lease_keeper(self) -> WorkerKeeper:
        """See `sitq.administration.AdminBackend.lease_keeper`."""
        keeper: Any = self._backend.lease_keeper()
        return _FaultyKeeper(keeper, self._next)


def _administered(cls: type[T]) -> type[T]:
    """Return a class with the methods of administration."""
    if AdminMethods in cls.__mro__:
        return cls
    return type(cls.__name__, (cls, AdminMethods), {"__module__": cls.__module__})


def _call_of(method: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Return a call of a method, for the arguments of its verb."""
    match arguments:
        case (RetryRequest(repeats, again),):
            return partial(method, repeats, again=again)
        case (ChangeRequest(change, where, limit, cursor, dry_run),):
            return partial(method, change, where, limit, cursor, dry_run=dry_run)
        case _:
            return partial(method, *arguments)


class _FaultyKeeper:
    def __init__(self, keeper: WorkerKeeper, next_fault: Callable[[str], _Fault | None]) -> None:
        self._keeper = keeper
        self._next = next_fault

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        return self._do("renew", partial(self._keeper.renew, leases, seconds))

    def report(self, report: WorkerReport) -> WorkerOrders:
        return self._do("report", partial(self._keeper.report, report))

    def deregister(self, worker_id: str) -> None:
        self._do("deregister", partial(self._keeper.deregister, worker_id))

    def _do(self, operation: str, work: Callable[[], T]) -> T:
        fault = self._next(operation)
        answer = work()
        if fault is not None:
            raise fault.error
        return answer

    def close(self) -> None:
        self._keeper.close()
