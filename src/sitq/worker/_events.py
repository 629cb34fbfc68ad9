"""Make the events of a worker; loaded only if an extension hears them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.extensions import (
    AttemptEnded,
    AttemptStarted,
    LeaseLost,
    StoreTrouble,
    TasksReclaimed,
    WorkerStarted,
    WorkerStopped,
)
from sitq.models import OutcomeKind
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq.extensions import Event
    from sitq.models import Lease, Outcome, ReservedTask
    from sitq.protocols import Backend

__all__ = ["WorkerEvents"]


class _Attempt:
    """An attempt whose end was not told yet."""

    __slots__ = ("duration", "since", "task", "wait")

    def __init__(self, task: ReservedTask, wait: float, since: float) -> None:
        self.task = task
        self.wait = wait
        # When it started, by the monotonic clock, and how many seconds it took.
        self.since = since
        self.duration: float | None = None


class WorkerEvents:
    """Makes the events of one run of a worker; called in its loop.

    Args:
        worker_id: the worker's id.
        backend: its store.
        monotonic: the store's monotonic clock.
        emit: takes the events, and raises nothing.
    """

    def __init__(
        self,
        worker_id: str,
        backend: Backend,
        monotonic: Callable[[], float],
        emit: Callable[[Event], None],
    ) -> None:
        self._worker_id = worker_id
        self._backend = backend
        self._clock = backend.clock
        self._monotonic = monotonic
        self._emit = emit
        self._attempts: dict[Lease, _Attempt] = {}
        # Leases that could not be renewed in time, and whose outcomes are not stored yet.
        self._overdue: set[Lease] = set()
        self._is_ready = False

    def worker_started(self, queues: tuple[str, ...], max_concurrency: int) -> None:
        """Tell that the worker is ready."""
        self._is_ready = True
        self._emit(
            WorkerStarted(worker_id=self._worker_id, queues=queues, max_concurrency=max_concurrency)
        )

    def worker_stopped(self, attempts: int, error: BaseException | None) -> None:
        """Tell that the worker has ended, if it was ready."""
        if self._is_ready:
            name = type(error).__name__ if isinstance(error, Exception) else None
            self._emit(WorkerStopped(worker_id=self._worker_id, attempts=attempts, error=name))

    def tasks_reclaimed(self, count: int) -> None:
        """Tell that a sweep has reclaimed tasks."""
        self._emit(TasksReclaimed(count=count, worker_id=self._worker_id))

    def store_failed(self, activity: str, failures: int, error: Exception) -> None:
        """Tell that the store has failed."""
        self._emit(
            StoreTrouble(
                worker_id=self._worker_id,
                activity=activity,
                failures=failures,
                error=type(error).__name__,
            )
        )

    def lease_lost(self, lease: Lease, *, is_overdue: bool = False) -> None:
        """Tell that a lease is lost."""
        if is_overdue:
            self._overdue.add(lease)
        self._emit(
            LeaseLost(
                task_id=lease.task_id,
                epoch=lease.epoch,
                worker_id=self._worker_id,
                is_overdue=is_overdue,
            )
        )

    def attempt_started(self, task: ReservedTask, lease: Lease) -> None:
        """Tell that an attempt starts."""
        wait = max((self._clock.now() - task.eta).total_seconds(), 0.0)
        self._attempts[lease] = _Attempt(task, wait, self._monotonic())
        self._emit(
            AttemptStarted(
                task_id=task.id,
                function=task.function,
                queue=task.queue,
                attempt=task.attempt,
                epoch=task.epoch,
                worker_id=self._worker_id,
                wait=wait,
            )
        )

    def attempt_ended(self, lease: Lease, outcome: Outcome | None) -> None:
        """Note when an attempt ended. One without an outcome is not reported, so tell of it."""
        attempt = self._attempts.get(lease)
        if attempt is not None:
            attempt.duration = self._monotonic() - attempt.since
            if outcome is None:
                self._tell_end(lease, None, accepted=False)

    def outcome_stored(self, outcome: Outcome, *, accepted: bool) -> None:
        """Tell that the store has accepted or refused the outcome of an attempt."""
        lease = outcome.lease
        if not accepted and lease not in self._overdue:
            self.lease_lost(lease)
        self._tell_end(lease, outcome, accepted=accepted)

    def outcome_dropped(self, outcome: Outcome) -> None:
        """Tell that an outcome is not stored because its lease is lost."""
        self._tell_end(outcome.lease, outcome, accepted=False)

    async def completion_refused(self, outcome: Outcome) -> None:
        """Tell how a task has ended that completed itself, and whose outcome the store refused.

        Most likely its transaction was committed.
        """
        try:
            (info,) = await self._backend.get_tasks((outcome.task_id,))
        except Exception:  # noqa: BLE001 - an unavailable store never ends a worker
            info = None
        if info is not None and info.status is TaskStatus.SUCCESS:
            self._tell_end(outcome.lease, None, accepted=True)
        else:
            self.outcome_stored(outcome, accepted=False)

    def _tell_end(self, lease: Lease, outcome: Outcome | None, *, accepted: bool) -> None:
        self._overdue.discard(lease)
        attempt = self._attempts.pop(lease, None)
        if attempt is None:
            return  # it was put back before it started
        task, duration = attempt.task, attempt.duration
        if duration is None:
            duration = self._monotonic() - attempt.since
        kind = OutcomeKind.SUCCESS if accepted else None
        error: str | None = None
        if outcome is not None:
            kind = outcome.kind
            error = outcome.error.partition(":")[0] if outcome.error else None
        self._emit(
            AttemptEnded(
                task_id=task.id,
                function=task.function,
                queue=task.queue,
                attempt=task.attempt,
                epoch=task.epoch,
                worker_id=self._worker_id,
                outcome=kind,
                accepted=accepted,
                duration=duration,
                wait=attempt.wait,
                error=error,
            )
        )
