"""The protocols that a store, a serializer and a clock implement.

The docstrings are the specification. `sitq.testing.BackendConformance` checks a store against it.
Durations are in seconds, moments are aware datetimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from sitq.ids import TaskId
    from sitq.models import (
        Lease,
        LeaseState,
        Outcome,
        Progress,
        Reservation,
        ReservedTask,
        Result,
        Task,
        TaskInfo,
    )

__all__ = [
    "Backend",
    "BlockingBackend",
    "Clock",
    "LeaseKeeper",
    "Listener",
    "ResultSigningSerializer",
    "Serializer",
    "SigningSerializer",
    "Sweep",
    "Topic",
]

Topic = Literal["tasks", "results", "cancels"]


class Clock(Protocol):
    """The time that sitq goes by; tests replace it."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC. It may jump, also back."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once `monotonic` has grown by ``seconds``. A cancellation ends it at once."""
        ...


class Serializer(Protocol):
    """Encodes plain values as bytes, and decodes them to what they were.

    Plain values are ``None``, bool, int of 64 bits, float, str, bytes, lists, tuples, dicts, sets
    and frozensets of plain values, datetime, date, time, timedelta, UUID, Decimal, and paths.
    """

    def dumps(self, value: Any) -> bytes:
        """Encode a plain value.

        Raises:
            SerializationError: the value has no encoding, is nested too deeply, or is too large.
        """
        ...

    def loads(self, data: bytes) -> Any:
        """Decode what `dumps` returned.

        Raises:
            SerializationError: ``data`` is not what `dumps` returns. No other error is raised.
        """
        ...


@runtime_checkable
class SigningSerializer(Serializer, Protocol):
    """A serializer that also protects the stored task, for example by a signature.

    Queue and worker look for these two methods. A serializer that wraps another one passes them
    on; otherwise nothing is sealed.
    """

    def seal(self, task: Task) -> Task:
        """Return the task as it is to be stored. Only its payload, from `dumps`, may change.

        It is called last, when all other fields have the values that the store gets.
        """
        ...

    def unseal(self, task: Task | ReservedTask) -> bytes:
        """Return the payload that `seal` was given, without decoding any of it.

        Of the fields that both models have, a store changes only the eta: ``None`` becomes the
        moment of the enqueue, and a task that is put back with a delay gets a later one.

        Raises:
            SerializationError: the seal is missing, broken, or of another task. The task fails.
        """
        ...


@runtime_checkable
class ResultSigningSerializer(SigningSerializer, Protocol):
    """A serializer that protects the stored result as well.

    Queues and workers look for these two methods. Without them, results are stored and read
    without a seal.
    """

    def seal_outcome(self, task: ReservedTask, outcome: Outcome) -> Outcome:
        """Return the outcome as it is to be stored. Value, error and traceback may change.

        It is called for every outcome, also if a task completes itself within a transaction. The
        result is ``success`` with the value, or ``failed`` with error and traceback: of a
        ``failure``, or of a ``retry`` with no attempt left.
        """
        ...

    def unseal_result(self, result: Result[Any]) -> Result[Any]:
        """Return the result as it was before `seal_outcome`, without decoding any of it.

        The store itself writes some ends, which never had a seal: ``cancelled``, ``expired``, and
        ``failed`` because the workers were lost or the row cannot be read.

        Raises:
            SerializationError: the seal is missing, broken, or of another result.
        """
        ...


class Sweep(NamedTuple):
    """How many tasks one `Backend.sweep` has reclaimed, expired and pruned."""

    reclaimed: int
    expired: int
    pruned: int


class Listener(Protocol):
    """Waits for changes of one topic."""

    async def wait(self) -> None:
        """Return once a change may have been committed since the last return (or the start).

        1. If a change was committed after the last return, but before this call, it returns at
           once.
        2. Changes of other processes count if the store can notice them.
        3. It may return without a change now and then. It never raises an error of the store.
        4. A cancelled call loses no change: the next call returns at once.
        """
        ...


class LeaseKeeper(Protocol):
    """Renews leases from one OS thread, outside every event loop. All its methods block.

    It works while the event loop of the backend's users is blocked.
    """

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """Make each lease end ``seconds`` from now, if its epoch is the task's current one.

        1. A lease whose time has run out is still current until it is reclaimed.
        2. No lease waits for a transaction that holds another task.

        Args:
            leases: the leases. With none, it opens what the next call needs, for example a
                connection. A worker makes this call before it is ready.
            seconds: the new length of each lease, from now.

        Returns:
            For each lease, in order: ``held``: renewed. ``cancel_requested``: renewed; the task
            is to end. ``lost``: the epoch is not current, or the task is not in progress; nothing
            changed. ``unknown``: an open transaction of a user holds the task; the lease is not
            renewed, and the task is not reclaimed before that transaction ends.

        Raises:
            BackendError: the store failed; the state of the leases is unknown.
        """
        ...

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        ...


class Backend(Protocol):
    """A store of tasks and results.

    What holds for every operation:

    1. It takes a batch, is atomic, and is durable when it returns.
    2. It judges the whole batch at one moment, ``now``: `Clock.now` of `clock`, or the time of
       the store's server, read once inside the operation.
    3. After a `BackendError`, nothing has changed, unless it is an `UnknownOutcomeError`.
    4. A cancelled caller leaves no lock and no transaction behind.
    5. It raises `UsageError` if the backend is not open, or is open in another event loop.

    A backend counts its users: `open` and `close` nest, the last `close` closes the store, and it
    may be opened again. It serves one event loop at a time, of asyncio or of trio. A loop that
    ended without `close` does not count.
    """

    @property
    def clock(self) -> Clock:
        """Return the clock that the users of the store share."""
        ...

    async def open(self) -> None:
        """Count a user in. The first one connects, and creates or migrates the store.

        Raises:
            BackendFormatError: this version cannot use what is there.
            BackendConnectionError: the store cannot be reached, or is not safe to use.
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        ...

    async def close(self) -> None:
        """Count a user out. The last one disconnects, after running operations have ended.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        ...

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Store tasks as ``pending``, all of them or none; return their ids in order.

        1. If its ``unique_key`` is held, a task is not stored, and the holder's id is returned in
           its place. The holder may be an earlier task of this call. It may be the same task,
           which has been enqueued again after an error.
        2. Otherwise the id of a task is new.
        3. ``eta=None`` is stored as ``now``. Epoch, attempts and crashes start at 0.

        A task holds its key from the enqueue on. It releases the key for good when

        - it is final;
        - it is asked to end while it is in progress (`cancel`);
        - it is reserved for the first time, with ``unique_until="start"``.

        A holder that cannot start any more gives way to another task, in the same transaction:

        - ``pending`` with ``expires_at <= now``: it becomes ``expired``.
        - ``pending`` with ``expires_at <= eta``, which a retry has moved, or ``in_progress`` with
          ``expires_at <= now`` and ``lease end <= now``: it only releases the key.

        Args:
            tasks: the tasks; may be empty.

        Raises:
            BackendError: an id exists already; nothing was stored.
        """
        ...

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """Reserve due tasks for a worker.

        1. A task is due if it is ``pending``, ``eta <= now``, and ``expires_at`` is ``None`` or
           later than ``now``.
        2. The order over all ``queues`` together is: higher priority, earlier eta, insertion.
        3. A reserved task gets the status ``in_progress``, epoch + 1, attempts + 1,
           ``started_at = now``, and a lease that ends ``lease`` seconds from now.
        4. No task is reserved for two callers. If the caller is cancelled after the commit, its
           tasks are released before the backend's next operation runs.
        5. The cost grows with the number of queues that have pending tasks, not with the number
           of tasks.

        Args:
            worker: the worker's name, for people who look at the store.
            queues: the names of the queues. ``ALL_QUEUES``, which is ``("*",)``, means every
                queue, also one that is new.
            limit: the largest number of tasks, 0 or more.
            lease: the length of the leases in seconds.

        Returns:
            The reserved tasks, in order, and ``wait``: 0 if due tasks are left, otherwise the
            seconds until the next pending task of ``queues`` is due, ``None`` if none will be.
        """
        ...

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End attempts; return for each outcome, in order, whether it was accepted.

        An outcome is accepted if and only if its task is ``in_progress`` and its epoch is the
        task's current one. A refused outcome changes nothing; the others of the batch stand. The
        lease ends with the outcome, so of two outcomes for one lease the first is accepted.

        - ``success``, ``failure``: the status becomes ``success`` with the value, or ``failed``
          with error and traceback. A requested cancellation changes nothing of this.
        - ``cancelled``: the status becomes ``cancelled``.
        - ``retry``: ``failed``, as for a ``failure``, if the task's own policy has
          ``max_attempts`` and they are spent. Otherwise ``cancelled`` if cancellation was
          requested. Otherwise ``pending`` with ``eta = now + delay``; `TaskInfo` keeps the error.
        - ``release``: ``cancelled`` if cancellation was requested; the attempt counts. Otherwise
          ``pending`` with attempts - 1 and the eta as it was.
        - ``unknown_function``: as ``release``, with ``eta = now + delay`` and
          unknown_function_count + 1.

        A task that becomes final gets ``finished_at = now`` in the same step. One that ends as
        ``success`` or ``cancelled`` keeps no error of an earlier attempt. If an open transaction
        of a user holds a task, its outcome waits for that to end; outcomes of other calls do not.

        Args:
            outcomes: the outcomes; may be empty.
        """
        ...

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """Reclaim, expire and prune what time has made due; return how many of each.

        1. Reclaim tasks ``in_progress`` with ``lease end <= now``, the earliest lease end first:
           attempts - 1, crashes + 1. Then the status becomes ``cancelled`` if cancellation was
           requested; ``failed``, with an error that says that the workers were lost, if crashes
           reached ``max_crashes``; otherwise ``pending`` with the eta as it was.
        2. Expire ``pending`` tasks with ``expires_at <= now``, the earliest first.
        3. Prune final tasks with ``finished_at + result_ttl <= now``, the earliest first, with
           their results.

        ``now`` is the moment of the call, not of the work: a process that is suspended in between
        has sent no heartbeats for its own leases either.

        Args:
            max_crashes: the number of crashes with which a task fails, 1 or more.
            limit: the largest number of tasks for each of the three.
        """
        ...

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """Remove final tasks with ``finished_at + older_than <= now``; return how many.

        Args:
            older_than: the age in seconds. The tasks' own ``result_ttl`` does not matter.
            limit: the largest number of tasks; those with the earliest ``finished_at`` go first.
        """
        ...

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """Cancel a task; return False if it was final, otherwise True.

        - ``pending``: the status becomes ``cancelled``.
        - ``in_progress``: cancellation is requested. Its lease keeper reports that, the task
          never starts again, and it releases its unique key.
        - final: nothing changes.

        Args:
            task_id: the task's id.

        Raises:
            TaskNotFoundError: the id is unknown.
        """
        ...

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """Store the progress of an attempt if its lease is current; return whether it is.

        Args:
            lease: the lease of the attempt. It is not renewed.
            progress: replaces what was stored before.
        """
        ...

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """Return the present state of each task, in order; ``None`` for an unknown id.

        ``progress`` is that of a running attempt, ``error`` that of the last one that failed.

        Args:
            task_ids: the ids; may be empty, and may name a task twice.
        """
        ...

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """Return results by id: ``None`` while a task is not final. Unknown ids are left out.

        Args:
            task_ids: the ids; may be empty, and may name a task twice.
        """
        ...

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """Return a task as it was enqueued, with its present eta.

        Args:
            task_id: the task's id.

        Raises:
            TaskNotFoundError: the id is unknown.
        """
        ...

    def listen(self, topic: Topic) -> AbstractAsyncContextManager[Listener]:
        """Listen for changes, from entering the context on.

        Args:
            topic: ``"tasks"``: tasks became pending (enqueued, retried, released or reclaimed);
                ``"results"``: tasks became final; ``"cancels"``: running tasks are asked to end.
        """
        ...

    def lease_keeper(self) -> LeaseKeeper:
        """Return a lease keeper for the calling thread; the backend stays open around its use.

        Raises:
            UsageError: the backend is not open.
        """
        ...


@runtime_checkable
class BlockingBackend(Backend, Protocol):
    """A store to which a thread can enqueue without an event loop. Optional.

    `SyncTaskQueue` enqueues to other stores through its event loop, which costs two switches of
    threads for each call. A subclass that overrides `enqueue` overrides `enqueue_blocking` too.
    """

    def enqueue_blocking(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Enqueue as `Backend.enqueue` does; block the calling thread until it is done.

        1. The store is open, in any event loop.
        2. Any number of threads may call it at the same time. Calls that wait at the same time
           are written together.
        3. An exception that a signal handler raises may interrupt it, for example a
           `KeyboardInterrupt`. The tasks are then stored or not; no other call is affected.
        4. A signal handler or a finalizer that interrupts a call within its transaction cannot
           make another call.

        Args:
            tasks: the tasks; may be empty.

        Raises:
            UsageError: the store is not open or is closed meanwhile, or the call is one of 4.
            BackendError: as for `Backend.enqueue`.
        """
        ...
