"""The verbs of the stores that speak SQL: one table, a row a verb, and what some verbs take.

A store carries a verb out by the function of the same name in its own ``_operations`` module. How
the function is called is read from here: in which order with others, by when its work is on the
disk, and what becomes of a call whose answer was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from sitq.protocols import Topic

__all__ = [
    "CANCEL",
    "ENQUEUE",
    "ENQUEUE_UNIQUE",
    "FINISH",
    "GET_RESULTS",
    "GET_TASKS",
    "LOAD_TASK",
    "PRUNE",
    "RESERVE",
    "SET_PROGRESS",
    "SWEEP",
    "VERBS",
    "FlushPolicy",
    "PruneRequest",
    "ReserveRequest",
    "SweepRequest",
    "Verb",
    "rows_by_operation",
]


class FlushPolicy(IntEnum):
    """By when a commit is on the disk; the strictest comes last."""

    DEFERRED = 0
    """A power cut may undo it, but then nobody is left who acts by it."""
    ACKNOWLEDGED = 1
    """Others may see it a moment before the caller is told that it is safe."""
    BEFORE_COMMIT = 2
    """Nobody sees what a power cut could still undo."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Verb:
    """One row of the table.

    Args:
        name: the method of `sitq.protocols.Backend`, and the function of a store.
        writes: False for a read, which runs outside any transaction; the rest is about writes.
        durability: by when its work is on the disk, where sitq flushes (SQLite).
        lane: the name of its lane, where a store has several (PostgreSQL). Requests of one lane
            are carried out one after another.
        joinable: whether one call serves all requests that wait at the same time, where each call
            is one statement (PostgreSQL). SQLite carries all that waits out in one transaction.
        searched_by: the function that finds out what a call has done whose answer was lost, for
            stores behind a network. ``None``: the call is made again, which does no harm.
        wakes: the topics whose listeners it may wake.
        offers_tasks: whether it stores new tasks, for which reservations may be pending.
    """

    name: str
    writes: bool = True
    durability: FlushPolicy = FlushPolicy.BEFORE_COMMIT
    lane: str = "others"
    joinable: bool = False
    searched_by: str | None = None
    wakes: frozenset[Topic] = frozenset()
    offers_tasks: bool = False


ENQUEUE: Final = Verb(
    name="enqueue",
    # A new task that others see early does no harm: only when it is safe, its caller hears of it.
    durability=FlushPolicy.ACKNOWLEDGED,
    lane="enqueue",
    joinable=True,
    searched_by="enqueued_before",
    wakes=frozenset({"tasks", "results"}),  # it may expire the holder of a unique key
    offers_tasks=True,
)
# Of a store whose `enqueue` takes no unique keys: one that is held must not hold up other tasks.
ENQUEUE_UNIQUE: Final = Verb(
    name="enqueue_unique",
    durability=FlushPolicy.ACKNOWLEDGED,
    lane="enqueue_unique",
    searched_by="enqueued_before",
    wakes=ENQUEUE.wakes,
    offers_tasks=True,
)
RESERVE: Final = Verb(
    name="reserve",
    # A power cut that undoes a reservation has ended its worker too.
    durability=FlushPolicy.DEFERRED,
    searched_by="reserved_before",
    wakes=frozenset({"results"}),  # it fails tasks that cannot be read
)
FINISH: Final = Verb(
    name="finish",
    lane="finish",
    joinable=True,
    searched_by="finished_before",
    wakes=frozenset({"tasks", "results"}),
)
SWEEP: Final = Verb(name="sweep", wakes=frozenset({"tasks", "results"}))
PRUNE: Final = Verb(name="prune")
CANCEL: Final = Verb(
    name="cancel", searched_by="cancelled_before", wakes=frozenset({"results", "cancels"})
)
SET_PROGRESS: Final = Verb(name="set_progress", durability=FlushPolicy.DEFERRED)
GET_TASKS: Final = Verb(name="get_tasks", writes=False)
GET_RESULTS: Final = Verb(name="get_results", writes=False)
LOAD_TASK: Final = Verb(name="load_task", writes=False)

VERBS: Final = (
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


def rows_by_operation(
    module: ModuleType, verbs: Iterable[Verb] = VERBS
) -> dict[Callable[..., Any], Verb]:
    """Return the rows of the table by the functions of a store that carry them out."""
    return {getattr(module, verb.name): verb for verb in verbs}


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
