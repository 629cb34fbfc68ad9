"""The ports: what sitq asks of a store, a serializer and a clock.

The docstrings are the specification; `sitq.testing` holds checks of it that run against any
backend.

`BlockingBackend` is optional. To any other store, `SyncTaskQueue` enqueues through its event loop,
which costs two changes of threads a call.
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
    """The time as sitq sees it; tests replace it."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC. It may jump, also back."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once ``monotonic()`` has grown by ``seconds``; cancellable at once."""
        ...


class Serializer(Protocol):
    """Turns plain values into bytes and back.

    Plain values are ``None``, bool, int of 64 bits, float, str, bytes, lists, tuples, dicts, sets
    and frozensets of plain values, datetime, date, time, timedelta, UUID, Decimal, pure and
    concrete paths. Each comes back as what it was.
    """

    def dumps(self, value: Any) -> bytes:
        """Encode a plain value.

        Raises:
            SerializationError: the value cannot be carried, is nested too deeply, or is too large.
        """
        ...

    def loads(self, data: bytes) -> Any:
        """Decode what ``dumps`` made.

        Raises:
            SerializationError: whatever is wrong with ``data``; never anything else.
        """
        ...


@runtime_checkable
class SigningSerializer(Serializer, Protocol):
    """A serializer that also protects what is stored of a task, by a signature say.

    Queue and worker look for these two methods. A serializer that wraps another one has to pass
    them on, or nothing is sealed.
    """

    def seal(self, task: Task) -> Task:
        """Return the task as it is to be stored: only its payload, from ``dumps``, may change.

        It is called last, when all other fields are as the store will get them.
        """
        ...

    def unseal(self, task: Task | ReservedTask) -> bytes:
        """Return the payload that ``seal`` was given, without decoding any of it.

        Between the two, a store sets an eta of ``None`` to the present moment, and moves the eta
        when the task is retried or put back; the other fields that both models have stay.

        Raises:
            SerializationError: the seal is missing, broken, or of another task. The task fails.
        """
        ...


@runtime_checkable
class ResultSigningSerializer(SigningSerializer, Protocol):
    """A serializer that protects what is stored of a task's end as well.

    Workers and queues look for these two methods. With a serializer that has only those of
    `SigningSerializer`, results are stored and read without a seal.
    """

    def seal_outcome(self, task: ReservedTask, outcome: Outcome) -> Outcome:
        """Return the outcome as it is to be stored: value, error and traceback may change.

        The store makes a result of it: ``success`` with the value, or ``failed`` with error and
        traceback. Those of a ``retry`` become a ``failed`` result where no attempt is left.
        Called for every outcome, also where a task completes itself within a transaction.
        """
        ...

    def unseal_result(self, result: Result[Any]) -> Result[Any]:
        """Return the result as it was before ``seal_outcome``, without decoding any of it.

        Ends that a store writes itself were never sealed: cancelled, expired, lost with its
        workers, or failed because the row cannot be read.

        Raises:
            SerializationError: the seal is missing, broken, or of another result.
        """
        ...


class Sweep(NamedTuple):
    """How many tasks one `Backend.sweep` moved."""

    reclaimed: int
    expired: int
    pruned: int


class Listener(Protocol):
    """Waits for changes of one topic."""

    async def wait(self) -> None:
        """Return once a change may have been committed since the last return (or the start).

        1. A change that was committed before the call, but after the last return, returns at once.
        2. Changes of other processes count where the store can tell of them.
        3. It may return for nothing now and then; it never raises because of the store.
        4. Cancelling it loses no change: the next call returns at once for it.
        """
        ...


class LeaseKeeper(Protocol):
    """Renews leases from one OS thread, apart from every event loop. All methods block.

    It works while the event loop of the backend's other users is blocked.
    """

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[LeaseState]:
        """Make each lease end ``seconds`` from now, if its epoch is the task's current one.

        Returns, in order: ``held``; ``cancel_requested`` (renewed, and the task is to end);
        ``lost`` (the epoch is not current, or the task is not in progress: nothing changed);
        ``unknown`` (an open transaction of somebody's holds the task, and will decide: the lease
        was not renewed, and nobody can reclaim the task meanwhile). No lease waits for another's
        transaction. A lease whose time has run out, but which nobody reclaimed, is still current.

        With no leases it returns an empty list, once it has what it needs for the next call: a
        connection, say. A worker calls it so before it is ready.

        Raises:
            BackendError: the store failed; nothing is known of the leases.
        """
        ...

    def close(self) -> None:
        """Give up the connection. Calling it twice is fine."""
        ...


class Backend(Protocol):
    """A store of tasks and results.

    Every operation is atomic and durable when it returns, takes a batch, and judges all of it at
    one moment, ``clock.now()`` or the store's own time, read once inside the operation. An
    operation that raises a `BackendError` changed nothing, unless its text says that the outcome
    is unknown. A caller that is cancelled leaves no lock and no transaction behind.

    A backend counts its users: `open` and `close` nest, the last `close` closes, and it may be
    opened again. It serves one event loop at a time, asyncio's or trio's; a loop that ended
    without `close` does not count. An operation of a backend that is not open, or is open in
    another loop, raises `UsageError`.
    """

    @property
    def clock(self) -> Clock:
        """The clock that the store's users share."""
        ...

    async def open(self) -> None:
        """Count a user in; the first one connects, creates or migrates the store.

        Raises:
            BackendFormatError: what is there is no store that this version can use.
            BackendConnectionError: it cannot be reached, or is not safe to use.
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        ...

    async def close(self) -> None:
        """Count a user out; the last one disconnects, after what is under way has ended.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        ...

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Store tasks as ``pending``, all of them or none, and return their ids in order.

        1. A task whose ``unique_key`` is held by another (also by an earlier one of this call) is
           not stored; the id of the holder is returned in its place. This goes before 4, so that
           a task with a key may be enqueued again after an error. A task holds its key until it
           is final, or until it is asked to end while in progress (see `cancel`); with
           ``unique_until="start"`` until it is reserved for the first time. It does not get the
           key back when it is pending again.
        2. A holder that can never start again gives way to another task in the same transaction.
           If it is ``pending`` with ``expires_at <= now``, it becomes ``expired``. If it is
           ``pending`` with ``expires_at <= eta`` (a retry has put it off), or ``in_progress`` with
           ``expires_at <= now`` and its lease ended (``lease end <= now``), it holds the key no
           more, and stays as it is otherwise.
        3. ``eta=None`` becomes the present moment. Epoch, attempts and crashes start at 0.
        4. Ids are new; an id that exists already raises `BackendError` and stores nothing.
        """
        ...

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        """Reserve up to ``limit`` due tasks of ``queues`` for ``worker``, in order.

        1. Due: ``pending``, ``eta <= now``, and ``expires_at`` is ``None`` or later than now.
        2. Order: higher priority, then earlier eta, then insertion; over all ``queues`` together.
        3. Each gets ``in_progress``, epoch + 1, attempts + 1, ``started_at = now``, and a lease
           of ``lease`` seconds from now.
        4. No task is reserved by two callers. A caller that is cancelled after its reservation
           was committed has handed the tasks back (as a release) when the next operation of this
           backend runs.
        5. ``wait`` is 0 if due tasks were left over, otherwise the seconds until the next pending
           task of ``queues`` is due, ``None`` if there is none; one that has expired does not
           count. ``limit`` may be 0.
        6. ``queues`` equal to ``ALL_QUEUES``, which is ``("*",)``, means every queue, also one that
           is new. The cost grows with the number of queues that have pending tasks, not with the
           number of tasks.
        """
        ...

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End attempts; return for each outcome, in order, whether it was accepted.

        An outcome is accepted if and only if its task is ``in_progress`` and its epoch is the
        task's current one. Anything else changes nothing of that task and is ``False``; the
        others of the batch stand.

        - ``success``, ``failure``: the status becomes ``success`` or ``failed``, with value or
          error and traceback, and ``finished_at = now``, in one step, whether cancellation was
          requested or not.
        - ``retry``: ``pending`` with ``eta = now + delay``; the error is kept for `TaskInfo`. If
          the task's own policy has ``max_attempts`` and they are spent, it is a ``failure``;
          otherwise, if cancellation was requested, it becomes ``cancelled``.
        - ``release``: ``pending`` as it was, attempts - 1; if cancellation was requested, as
          ``cancelled``: the attempt was the last one, so it counts.
        - ``miss``: as ``release``, with ``eta = now + delay`` and misses + 1.
        - ``cancelled``: the status becomes ``cancelled``, with ``finished_at = now``.

        The lease ends with the outcome, so of two for one lease in a batch the first is accepted.
        A task that ended as ``success`` or ``cancelled`` keeps no error of an earlier attempt.
        Where an open transaction of somebody's holds a task, its outcome waits for that to end;
        those of other calls do not.
        """
        ...

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        """Do what time has made due, at most ``limit`` tasks of each kind, oldest first.

        1. Reclaim, in one statement or transaction: tasks ``in_progress`` whose lease ended
           (``lease end <= now``): attempts - 1, crashes + 1, then ``cancelled`` if cancellation
           was requested, ``failed`` with an error that says that its workers were lost if crashes
           reached ``max_crashes``, else ``pending`` with its eta as it was.
        2. Expire: ``pending`` tasks with ``expires_at <= now`` become ``expired``.
        3. Prune: final tasks with ``finished_at + result_ttl <= now`` are removed with their
           results.

        ``now`` is the moment of the call. If the process stands still before the work begins, the
        heartbeats of its own leases have stood still too.
        """
        ...

    async def prune(self, older_than: float, limit: int = 1000) -> int:
        """Remove up to ``limit`` final tasks with ``finished_at + older_than <= now``.

        Args:
            older_than: seconds; the tasks' own ``result_ttl`` does not matter here.
            limit: at most so many in this call, the earliest ``finished_at`` first.

        Returns:
            How many were removed, each together with its result.
        """
        ...

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        """Cancel a task that is not final; return whether it will end, False if it had ended.

        ``pending`` becomes ``cancelled`` at once. ``in_progress`` is flagged: its lease keeper
        hears of it, it never starts again, and it gives up its unique key at once.

        Raises:
            TaskNotFoundError: the id is unknown.
        """
        ...

    async def set_progress(self, lease: Lease, progress: Progress) -> bool:
        """Note how far an attempt is, if its epoch is current; return whether it was."""
        ...

    async def get_tasks(self, task_ids: Sequence[TaskId[Any]]) -> list[TaskInfo | None]:
        """Return what is known of each id, in order; ``None`` for an unknown one.

        ``progress`` is that of the running attempt only. ``error`` is the last attempt's.
        """
        ...

    async def get_results(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None]:
        """Return the result of each id that is known: ``None`` while the task is not final."""
        ...

    async def load_task(self, task_id: TaskId[Any]) -> Task:
        """Return the task as it was enqueued, with its present eta (a retry moves it).

        Raises:
            TaskNotFoundError: the id is unknown.
        """
        ...

    def listen(self, topic: Topic) -> AbstractAsyncContextManager[Listener]:
        """Listen for changes, from entering the context on.

        ``"tasks"`` changes when tasks become pending (enqueued, retried, released, reclaimed),
        ``"results"`` when tasks become final, ``"cancels"`` when running tasks are asked to end.
        """
        ...

    def lease_keeper(self) -> LeaseKeeper:
        """Return a lease keeper for the calling thread. The backend must stay open around it."""
        ...


@runtime_checkable
class BlockingBackend(Backend, Protocol):
    """A `Backend` with a second way to enqueue, for threads in which no event loop runs.

    A class that overrides `enqueue` of such a store has to override `enqueue_blocking` too.
    """

    def enqueue_blocking(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        """Do what `Backend.enqueue` does, and block the calling thread until it is done.

        1. The store is open, in whichever event loop; if not, or if it is closed meanwhile, it
           raises `UsageError`.
        2. Any number of threads may call it at the same time. Calls that wait at the same time are
           written together.
        3. It may be interrupted by what a signal handler raises, a `KeyboardInterrupt` say: the
           tasks are stored then, or not. No other call is harmed.
        4. A signal handler or a finalizer that interrupts such a call in the middle of its
           transaction cannot make another one: it gets a `UsageError`.
        """
        ...
