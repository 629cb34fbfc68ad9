"""The table of verbs: how a store carries out each operation, and the types of the requests.

A store carries a verb out by the function of the same name in its own ``_operations`` module. How
the function is called is read from here: in which order with others, by when its work is on the
disk, and what becomes of a call whose answer was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from sitq.administration import (
        BulkResult,
        Count,
        FailedAttempt,
        Overview,
        QueuePause,
        TaskPage,
        WorkerInfo,
        WorkerState,
    )
    from sitq.ids import TaskId
    from sitq.models import Lease, Progress, Reservation, Result, Task, TaskInfo
    from sitq.protocols import Sweep

__all__ = [
    "ADMIN_VERBS",
    "CANCEL",
    "CHANGE_TASKS",
    "COUNT_TASKS",
    "ENQUEUE",
    "ENQUEUE_UNIQUE",
    "FINISH",
    "GET_ATTEMPTS",
    "GET_RESULTS",
    "GET_TASKS",
    "LIST_PAUSES",
    "LIST_TASKS",
    "LIST_WORKERS",
    "LOAD_TASK",
    "LOAD_TASKS",
    "ORDER_WORKER",
    "OVERVIEW",
    "PAUSE_QUEUE",
    "PRUNE",
    "REPLACE_TASK",
    "RESERVE",
    "RESUME_QUEUE",
    "RETRY_TASKS",
    "SET_PROGRESS",
    "SWEEP",
    "VERBS",
    "FlushPolicy",
    "OrderRequest",
    "ProgressRequest",
    "PruneRequest",
    "ReserveRequest",
    "SweepRequest",
    "Verb",
    "operations_of",
]


T = TypeVar("T")


class FlushPolicy(IntEnum):
    """By when a commit is on the disk; the strictest comes last."""

    DEFERRED = 0
    """A power cut can undo it. It also ends the process that relied on it."""
    ACKNOWLEDGED = 1
    """Others can see it a moment before it is flushed; the call returns after that."""
    BEFORE_COMMIT = 2
    """It is visible only when a power cut cannot undo it."""


class ReserveRequest(NamedTuple):
    """Which due tasks to reserve.

    ``ticket`` is a random number of the request's own, where a store finds by it what was reserved
    by a call whose answer was lost.
    """

    worker: str
    queues: tuple[str, ...]
    limit: int
    lease: float
    ticket: int = 0


class SweepRequest(NamedTuple):
    """The bounds of one sweep.

    ``asked_at`` is the moment of the call, in microseconds of the store's clock or in seconds of
    `time.monotonic`, as the store counts. What has become due only since then is left to the next
    sweep, for which the callers' heartbeats have had their chance.
    """

    max_crashes: int
    limit: int
    asked_at: float


class PruneRequest(NamedTuple):
    """Which final tasks to remove by age; ``older_than`` is in seconds."""

    older_than: float
    limit: int


class ProgressRequest(NamedTuple):
    """What to note of the attempt that has a lease."""

    lease: Lease
    progress: Progress


def _identity(item: T) -> T:
    """Return the argument unchanged."""
    return item


class OrderRequest(NamedTuple):
    """What a worker is to become."""

    worker_id: str
    state: WorkerState


@dataclass(frozen=True, eq=False, kw_only=True)
class Verb(Generic[T]):
    """One row of the table; ``T`` is what the method returns.

    Args:
        name: the method of `sitq.protocols.Backend`, and the function of a store.
        writes: False for a read, which runs outside any transaction and takes the arguments as they
            are; the rest is about writes.
        request: makes an item of the arguments of a call. ``None``: the argument is a batch of
            items already, and the answers are all theirs.
        durability: by when its work is on the disk, where sitq flushes (SQLite).
        lane: the name of its lane, where a store has several (PostgreSQL). Requests of one lane
            are carried out one after another.
        joinable: whether one call serves all requests that wait at the same time, where each call
            is one statement (PostgreSQL). SQLite carries all that waits out in one transaction.
        recovered_by: the function that finds out what a call has done whose answer was lost, for
            stores behind a network. ``None``: the call is made again, which does no harm.
        held: how long a call is made again for items that an open transaction holds, for which the
            function gives ``None``: not at all, for the statement timeout, or for ever.
    """

    name: str
    writes: bool = True
    request: Callable[..., Any] | None = None
    durability: FlushPolicy = FlushPolicy.BEFORE_COMMIT
    lane: str = "others"
    joinable: bool = False
    recovered_by: str | None = None
    held: Literal["never", "until_timeout", "for_ever"] = "never"


ENQUEUE: Final[Verb[list[TaskId[Any]]]] = Verb(
    name="enqueue",
    request=_identity,
    # A new task that others see early does no harm: its caller returns when it is safe.
    durability=FlushPolicy.ACKNOWLEDGED,
    lane="enqueue",
    joinable=True,
    recovered_by="enqueued_before",
)
# Of a store whose `enqueue` takes no unique keys: one that is held must not hold up other tasks.
ENQUEUE_UNIQUE: Final[Verb[list[TaskId[Any]]]] = Verb(
    name="enqueue_unique",
    request=_identity,
    durability=FlushPolicy.ACKNOWLEDGED,
    lane="enqueue_unique",
    recovered_by="enqueued_before",
    held="until_timeout",
)
RESERVE: Final[Verb[Reservation]] = Verb(
    name="reserve",
    request=ReserveRequest,
    # A power cut that undoes a reservation has ended its worker too.
    durability=FlushPolicy.DEFERRED,
    recovered_by="reserved_before",
)
FINISH: Final[Verb[list[bool]]] = Verb(
    name="finish",
    lane="finish",
    joinable=True,
    recovered_by="finished_before",
    held="for_ever",
)
SWEEP: Final[Verb[Sweep]] = Verb(name="sweep", request=SweepRequest)
PRUNE: Final[Verb[int]] = Verb(name="prune", request=PruneRequest)
CANCEL: Final[Verb[bool]] = Verb(
    name="cancel",
    request=_identity,
    recovered_by="cancelled_before",
    held="for_ever",
)
SET_PROGRESS: Final[Verb[bool]] = Verb(
    name="set_progress",
    request=ProgressRequest,
    durability=FlushPolicy.DEFERRED,
    held="for_ever",
)
GET_TASKS: Final[Verb[list[TaskInfo | None]]] = Verb(name="get_tasks", writes=False)
GET_RESULTS: Final[Verb[Mapping[TaskId[Any], Result[Any] | None]]] = Verb(
    name="get_results", writes=False
)
LOAD_TASK: Final[Verb[Task]] = Verb(name="load_task", writes=False)

LIST_TASKS: Final[Verb[TaskPage]] = Verb(name="list_tasks", writes=False)
COUNT_TASKS: Final[Verb[Count]] = Verb(name="count_tasks", writes=False)
OVERVIEW: Final[Verb[Overview]] = Verb(name="overview", writes=False)
PAUSE_QUEUE: Final[Verb[None]] = Verb(name="pause_queue", request=_identity)
RESUME_QUEUE: Final[Verb[bool]] = Verb(name="resume_queue", request=_identity)
LIST_PAUSES: Final[Verb[list[QueuePause]]] = Verb(name="list_pauses", writes=False)
CHANGE_TASKS: Final[Verb[BulkResult]] = Verb(name="change_tasks", request=_identity, lane="admin")
LOAD_TASKS: Final[Verb[list[Task | None]]] = Verb(name="load_tasks", writes=False)
RETRY_TASKS: Final[Verb[list[TaskId[Any] | None]]] = Verb(
    name="retry_tasks",
    request=_identity,
    durability=FlushPolicy.ACKNOWLEDGED,
    lane="admin",
    held="until_timeout",
)
REPLACE_TASK: Final[Verb[bool]] = Verb(name="replace_task", request=_identity)
GET_ATTEMPTS: Final[Verb[list[FailedAttempt]]] = Verb(name="get_attempts", writes=False)
LIST_WORKERS: Final[Verb[list[WorkerInfo]]] = Verb(name="list_workers", writes=False)
ORDER_WORKER: Final[Verb[bool]] = Verb(name="order_worker", request=OrderRequest)

ADMIN_VERBS: Final[tuple[Verb[Any], ...]] = (
    LIST_TASKS,
    COUNT_TASKS,
    OVERVIEW,
    PAUSE_QUEUE,
    RESUME_QUEUE,
    LIST_PAUSES,
    CHANGE_TASKS,
    LOAD_TASKS,
    RETRY_TASKS,
    REPLACE_TASK,
    GET_ATTEMPTS,
    LIST_WORKERS,
    ORDER_WORKER,
)
"""The verbs that `sitq.administration.AdminBackend` adds."""

VERBS: Final[tuple[Verb[Any], ...]] = (
    ENQUEUE,
    RESERVE,
    FINISH,
    SWEEP,
    PRUNE,
    CANCEL,
    SET_PROGRESS,
    GET_TASKS,
    GET_RESULTS,
    LOAD_TASK,
)
"""The verbs of `sitq.protocols.Backend`, one for each of its methods that reads or writes tasks."""


def operations_of(
    module: ModuleType, verbs: Iterable[Verb[Any]] = VERBS
) -> dict[Verb[Any], Callable[..., Any]]:
    """Return the functions of a store that carry verbs out."""
    return {verb: getattr(module, verb.name) for verb in verbs}
