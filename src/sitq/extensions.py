"""`Extension`: the user's code around enqueueing and attempts, and the events that it hears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from sitq._validation import Model, Moment
from sitq.ids import TaskId
from sitq.models import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sitq.context import TaskContext
    from sitq.models import Task

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "Event",
    "Extension",
    "LeaseLost",
    "StoreTrouble",
    "TaskEnqueued",
    "TasksReclaimed",
    "WorkerStarted",
    "WorkerStopped",
]


class TaskEnqueued(Model):
    """A queue has stored a task, and the task is durable.

    There is none if the unique key was held and nothing was stored, and none for a task that was
    enqueued in a transaction of yours: sitq does not see its commit.

    Args:
        task_id: the task's id.
        function: the function's stored name.
        queue: the queue that the task waits in.
        priority: -100 to 100; higher runs first.
        eta: the earliest moment that it may start (UTC); ``None``: at once.
        retry_of: the id of the task that this one repeats.
    """

    task_id: TaskId[Any]
    function: str
    queue: str
    priority: int
    eta: Moment | None = None
    retry_of: TaskId[Any] | None = None


class AttemptStarted(Model):
    """A worker starts an attempt at a task that it has reserved.

    Args:
        task_id: the task's id.
        function: the function's stored name.
        queue: the queue that the task came from.
        attempt: which attempt this is; 1 for the first.
        epoch: the number of the reservation, the fencing token.
        worker_id: the worker's id.
        wait: seconds from the moment that the task was due until now, by the store's clock.
    """

    task_id: TaskId[Any]
    function: str
    queue: str
    attempt: int
    epoch: int
    worker_id: str
    wait: float


class AttemptEnded(Model):
    """The attempt of an `AttemptStarted` has ended, and the store has answered.

    There is none if the worker ended before the store has answered.

    Args:
        task_id: the task's id.
        function: the function's stored name.
        queue: the queue that the task came from.
        attempt: which attempt this is; 1 for the first.
        epoch: the number of the reservation, the fencing token.
        worker_id: the worker's id.
        outcome: how the attempt ended; ``None`` if its lease was lost before it had an outcome.
        accepted: True if the store accepted the outcome; False: the lease was lost, and the outcome
            changed nothing.
        duration: seconds that the attempt took, without the time until the store answered.
        wait: seconds from the moment that the task was due until the attempt started, by the
            store's clock.
        error: the type of the error of a failure or a retry, ``"ValueError"`` say; its text, which
            may hold arguments, is in the store.
    """

    task_id: TaskId[Any]
    function: str
    queue: str
    attempt: int
    epoch: int
    worker_id: str
    outcome: OutcomeKind | None
    accepted: bool
    duration: float
    wait: float
    error: str | None = None


class LeaseLost(Model):
    """A worker has lost the lease of a task that it held.

    Args:
        task_id: the task's id.
        epoch: the number of the reservation, the fencing token.
        worker_id: the worker's id.
        is_overdue: True if the lease could not be renewed in time: the store may still accept the
            attempt's outcome. False: another attempt is the current one, or the task has ended.
    """

    task_id: TaskId[Any]
    epoch: int
    worker_id: str
    is_overdue: bool


class TasksReclaimed(Model):
    """A worker has taken back tasks whose lease ended without an outcome.

    Args:
        count: how many tasks; more than 0.
        worker_id: the id of the worker that took them back, not of those that lost them.
    """

    count: int
    worker_id: str


class WorkerStarted(Model):
    """A worker is ready: its resources are open, and it begins to reserve tasks.

    Args:
        worker_id: the worker's id.
        queues: the names of the queues that it serves; ``("*",)``: every queue.
        max_concurrency: how many tasks it runs at the same time.
    """

    worker_id: str
    queues: tuple[str, ...]
    max_concurrency: int


class WorkerStopped(Model):
    """A worker that was ready has ended: nothing of it runs any more, and its resources are closed.

    Args:
        worker_id: the worker's id.
        attempts: how many attempts it started.
        error: the type of the error that ended it, ``"BackendConnectionError"`` say; ``None``: it
            was stopped, drained, or cancelled.
    """

    worker_id: str
    attempts: int
    error: str | None = None


class StoreTrouble(Model):
    """A worker could not do something at its store, and will try again.

    Args:
        worker_id: the worker's id.
        activity: what failed, ``"reserve tasks"`` say; one of a few texts.
        failures: how often it has failed in a row; 1 for the first.
        error: the type of the error, ``"BackendBusyError"`` say.
    """

    worker_id: str
    activity: str
    failures: int
    error: str


Event: TypeAlias = (
    TaskEnqueued
    | AttemptStarted
    | AttemptEnded
    | LeaseLost
    | TasksReclaimed
    | WorkerStarted
    | WorkerStopped
    | StoreTrouble
)


class Extension:
    """Code of yours that queues and workers call; subclass it, and override what you need.

    Give instances to ``TaskQueue(extensions=[...])``, ``SyncTaskQueue`` and ``Worker``. Which
    methods the class overrides is looked up once, when the queue or the worker is made. What is not
    overridden costs nothing. One instance may serve several queues and workers, also in several
    threads.
    """

    async def around_enqueue(
        self,
        tasks: Sequence[Task],
        call_next: Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]],
    ) -> list[TaskId[Any]]:
        """Run around the storing of tasks: of ``enqueue``, ``enqueue_many`` and ``retry``.

        The tasks are checked and not signed yet. Their payloads are opaque bytes. Their headers may
        change: give ``call_next`` copies, each made by `Task.with_headers`. The first extension of
        a queue is the outermost.

        A queue bound to a transaction calls it as well. `SyncTaskQueue` runs it in the caller's
        thread, without an event loop: there it may await ``call_next`` and nothing that waits.

        Args:
            tasks: what is to be stored, in order.
            call_next: stores the tasks, through the extensions that follow; to be called once, with
                the same number of tasks, of the same ids, in the same order. Nothing but their
                headers may differ, within the limits of the option ``headers``. It returns the ids;
                in the place of a task whose ``unique_key`` is held is the id of the holder.

        Returns:
            What ``call_next`` returned.

        Raises:
            Exception: any error; the caller of the queue gets it. Before ``call_next`` nothing is
                stored. After it the tasks are stored all the same.
        """
        return await call_next(tasks)

    async def around_attempt(
        self,
        context: TaskContext,  # noqa: ARG002 - for those who override it
        call_next: Callable[[], Awaitable[object]],
    ) -> object:
        """Run around an attempt, in its own asyncio or trio task.

        Context variables that it sets are seen by the function. The attempt's timeout and its
        cancellation pass through ``call_next``, and through what else it awaits. The first
        extension of a worker is the outermost.

        Args:
            context: what `current_task` returns in the task.
            call_next: runs the function, through the extensions that follow; to be called once. An
                async function runs in the same task, a plain one in a thread.

        Returns:
            What ``call_next`` returned; any other value takes its place as the task's result.

        Raises:
            Exception: any error; it is the failure of the attempt. `Retry` and `Fail` are
                understood as in a task.
        """
        return await call_next()

    def around_attempt_sync(
        self,
        context: TaskContext,  # noqa: ARG002 - for those who override it
        call_next: Callable[[], object],
    ) -> object:
        """Run around the call of a plain function, in the thread that makes it.

        It is called within all `around_attempt`, for plain functions only.

        Args:
            context: what `current_task` returns in the task.
            call_next: calls the function, through the extensions that follow; to be called once.

        Returns:
            What ``call_next`` returned; any other value takes its place as the task's result.

        Raises:
            Exception: any error; it is the failure of the attempt.
        """
        return call_next()

    def on_event(self, event: Event) -> None:
        """Take note of something that has happened and that the store has accepted.

        A worker calls it in the thread of its event loop, a queue in the thread of the caller. It
        must not block: nothing else runs meanwhile. What it raises is logged, once for each
        extension and type of event.

        Args:
            event: one of the models of `sitq.extensions`.
        """
