"""The public methods of stores, made once: each hands its verb and its arguments on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from sitq.backends._batch_queue import Request
from sitq.backends._open_counter import OpenStore
from sitq.backends._operations import (
    CANCEL,
    ENQUEUE,
    FINISH,
    GET_RESULTS,
    GET_TASKS,
    LOAD_TASK,
    PRUNE,
    RESERVE,
    SET_PROGRESS,
    SWEEP,
    ReserveRequest,
)
from sitq.models import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sitq._loops import LoopRef
    from sitq.backends._batch_queue import Compensate
    from sitq.backends._open_counter import OpenCounter
    from sitq.backends._operations import Verb
    from sitq.ids import TaskId
    from sitq.models import Lease, Progress, Reservation, Result, Task, TaskInfo
    from sitq.protocols import Clock, LeaseKeeper, Sweep

__all__ = ["BackendMethods", "SQLBackend"]

T = TypeVar("T")


class BackendMethods(ABC):
    """The methods of `sitq.protocols.Backend` that read or write tasks."""

    @abstractmethod
    async def _call(self, verb: Verb[T], *arguments: Any) -> T:
        """Carry a verb out."""

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """See `sitq.protocols.Backend.enqueue`."""
        return await self._call(ENQUEUE, tasks)

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """See `sitq.protocols.Backend.reserve`."""
        return await self._call(RESERVE, worker, queues, limit, lease)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """See `sitq.protocols.Backend.finish`."""
        return await self._call(FINISH, outcomes)

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """See `sitq.protocols.Backend.sweep`."""
        return await self._call(SWEEP, max_crashes, limit)

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """See `sitq.protocols.Backend.prune`."""
        return await self._call(PRUNE, older_than, limit)

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """See `sitq.protocols.Backend.cancel`."""
        return await self._call(CANCEL, task_id)

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """See `sitq.protocols.Backend.set_progress`."""
        return await self._call(SET_PROGRESS, lease, progress)

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """See `sitq.protocols.Backend.get_tasks`."""
        return await self._call(GET_TASKS, task_ids)

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """See `sitq.protocols.Backend.get_results`."""
        return await self._call(GET_RESULTS, task_ids)

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """See `sitq.protocols.Backend.load_task`."""
        return await self._call(LOAD_TASK, task_id)


class _Database(Protocol):
    """What carries operations out."""

    async def write(
        self,
        operation: Callable[..., Any],
        items: Sequence[Any],
        compensate: Compensate[Any] | None = None,
    ) -> list[Any]:
        """Carry an operation out, with others that wait for the same."""
        ...

    async def read(self, unit: Callable[..., Any], *parameters: Any) -> Any:
        """Run an operation that changes nothing."""
        ...


class _Session(OpenStore, Protocol):
    """What is open of a store that speaks SQL."""

    @property
    def database(self) -> _Database:
        """Return the connections."""
        ...

    def lease_keeper(self) -> LeaseKeeper:
        """Return a lease keeper for the calling thread."""
        ...


S = TypeVar("S", bound=_Session)


class SQLBackend(BackendMethods, Generic[S]):
    """A store that carries verbs out by the functions of its ``_operations`` module.

    A subclass overrides what its store does in a way of its own.

    Args:
        clock: the clock of its users.
        open_counter: counts them, and has what is open.
        operations: the functions, by their verbs.
        release: the function that ends attempts for a caller that is gone.
    """

    def __init__(
        self,
        clock: Clock,
        open_counter: OpenCounter[S],
        operations: Mapping[Verb[Any], Callable[..., Any]],
        release: Callable[..., Any],
    ) -> None:
        self._clock: Final = clock
        self._open_counter: Final = open_counter
        self._operations: Final = operations
        self._release: Final = release

    @property
    def clock(self) -> Clock:
        """Return the clock that the store's users share."""
        return self._clock

    async def open(self) -> None:
        """Count a user in; the first one connects, and makes or migrates the store.

        Raises:
            BackendFormatError: what is there is no store that this version can use or migrate.
            BackendConnectionError: it cannot be reached, or is not safe to use.
            BackendBusyError: the server has no connection left.
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        await self._open_counter.enter()

    async def close(self) -> None:
        """Count a user out; the last one disconnects.

        What a server has not answered within 5 seconds then ends as lost.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        await self._open_counter.leave()

    async def _call(self, verb: Verb[T], *arguments: Any) -> T:
        database = self._open_counter.use().database
        operation = self._operations[verb]
        answer: Any
        if not verb.writes:
            answer = await database.read(operation, *arguments)
        elif verb.request is None:
            answer = await database.write(operation, *arguments)
        else:
            (answer,) = await database.write(operation, (verb.request(*arguments),))
        typed: T = answer
        return typed

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """See `sitq.protocols.Backend.reserve`."""
        session = self._open_counter.use()
        request = self._reserve_request(worker, queues, limit, lease)
        answers = await session.database.write(
            self._operations[RESERVE], (request,), self._compensate(session.loop)
        )
        reservation: Reservation = answers[0]
        return reservation

    def _reserve_request(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> ReserveRequest:
        return ReserveRequest(worker, tuple(queues), limit, lease)

    def _compensate(self, loop: LoopRef) -> Compensate[Reservation]:
        """Return what releases the tasks that were reserved for a caller that is gone."""
        return partial(_hand_back, loop, self._release)

    def lease_keeper(self) -> LeaseKeeper:
        """See `sitq.protocols.Backend.lease_keeper`."""
        return self._open_counter.use_from_thread().lease_keeper()


def _hand_back(
    loop: LoopRef, release: Callable[..., Any], reservations: list[Reservation]
) -> Request[bool] | None:
    outcomes = [
        Outcome.release(task.lease) for reservation in reservations for task in reservation.tasks
    ]
    return Request(loop, release, outcomes) if outcomes else None
