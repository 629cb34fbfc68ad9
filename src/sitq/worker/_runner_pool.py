"""Run the attempts of a worker, and bound how many run and how many are reserved ahead.

Each attempt runs in a task of its own. Short tasks are reserved ahead, so that a free place does
not wait for the store. A prefetched task usually starts within a moment. If it does not, it is
released for other workers.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from sitq._logging import Log, fields_of
from sitq._signal_exits import find_signal_exit
from sitq.models import Outcome, OutcomeKind
from sitq.worker._attempt import Attempt, EndReason, NoThreadError
from sitq.worker._attempt_tasks import STARTS_EAGERLY, AttemptTask, Nurseries
from sitq.worker._calls import end_child
from sitq.worker._interpreter_yield import InterpreterYield
from sitq.worker._outcome_writer import UncommittedOutcome
from sitq.worker._outcomes import error_text, log_end, log_success, logs_success

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from anyio.abc import TaskStatus

    from sitq.context import TaskContext
    from sitq.models import Lease, ReservedTask
    from sitq.payload.functions import TaskFunction
    from sitq.worker._heartbeats import Heartbeats
    from sitq.worker._outcome_writer import OutcomeWriter
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["RunnerPool"]

_log: Final = Log(__name__)

# How many attempts are started, and for how many seconds at most, before the rest of the loop gets
# its turn. Where a new task does not run at once the seconds are not known, so the number is lower.
_TURN: Final = 20
_EAGER_TURN: Final = 100
_LONGEST_TURN: Final = 0.002
# After an attempt that took more seconds, the prefetched tasks may wait too long.
_LONG: Final = 0.005
# Seconds until a plain function is tried again after no thread could be started.
_NO_THREAD: Final = 1.0
# At most so many tasks are reserved ahead, and no more than start within so many seconds.
_MAX_PREFETCH: Final = 500
_PREFETCH_SECONDS: Final = 0.02
# A task that still waits after so many seconds is released.
_PREFETCH_TIMEOUT: Final = 0.25
# After a task whose worker was lost, a worker reserves none ahead for so many seconds.
_PAUSE: Final = 1.0
# The weight of the last duration in the running mean.
_WEIGHT: Final = 0.1

_LIVE_POOLS: Final[weakref.WeakSet[RunnerPool]] = weakref.WeakSet()


def _end_in_child() -> None:
    for pool in list(_LIVE_POOLS):
        with suppress(RuntimeError):  # its loop has ended
            pool.end_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_in_child)


class _PrefetchLimit:
    """Estimates how many tasks start within a moment, from how long attempts take."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # The running mean of the seconds that an attempt takes; `None` before the first has ended.
        self._mean: float | None = None
        self._paused_until = float("-inf")

    @property
    def is_paused(self) -> bool:
        """Return whether no task is reserved ahead because one may end the process."""
        return self._monotonic() < self._paused_until

    def limit(self, places: int) -> int:
        """Return how many tasks may be reserved ahead of so many places."""
        if self._mean is None or self.is_paused:
            return 0
        return min(_MAX_PREFETCH, int(_PREFETCH_SECONDS * places / max(self._mean, 1e-6)))

    def note(self, seconds: float) -> None:
        """Note how long an attempt took."""
        mean = seconds if self._mean is None else self._mean
        self._mean = max(mean + (seconds - mean) * _WEIGHT, 0.0)

    def note_timeout(self) -> None:
        """Note that a task has waited for too long: the running ones take longer than the mean."""
        self._mean = max(self._mean or 0.0, _PREFETCH_TIMEOUT)

    def pause(self) -> None:
        """Reserve none ahead for a while: one of the tasks may end the process."""
        self._paused_until = self._monotonic() + _PAUSE


class RunnerPool:
    """Runs reserved tasks, at most ``max_concurrency`` at a time."""

    def __init__(
        self, runtime: WorkerRuntime, heartbeats: Heartbeats, reporter: OutcomeWriter
    ) -> None:
        self._runtime = runtime
        self._heartbeats = heartbeats
        self._reporter = reporter
        self._monotonic = runtime.monotonic
        self._events = runtime.events
        self._places = runtime.options.max_concurrency
        self._process, self._thread = os.getpid(), threading.get_ident()
        _LIVE_POOLS.add(self)
        # How many attempts have started.
        self.started = 0
        # When a task of an unknown function was last put back, by the monotonic clock.
        self.unknown_function_at = float("-inf")
        self._prefetched: deque[Attempt] = deque()
        self._running: dict[Lease, Attempt] = {}
        # The thread of an abandoned call keeps its place until it ends.
        self._abandoned_threads: dict[Lease, Attempt] = {}
        # On trio, where the attempts run.
        loop = runtime.loop.asyncio
        self._nurseries = Nurseries(runtime.grace, runtime.worker_id) if loop is None else None
        self._turn = _EAGER_TURN if loop is not None and STARTS_EAGERLY else _TURN
        self._woken = anyio.Event()
        self._ended = anyio.Event()
        # Looked up once a turn, since that takes a moment.
        self._logs_success = False
        self.interpreter_yield: Final = InterpreterYield(runtime.backend)
        self._prefetch = _PrefetchLimit(runtime.monotonic)

    @property
    def busy(self) -> bool:
        """Return whether an attempt runs or waits."""
        return bool(self._running or self._prefetched)

    @property
    def running(self) -> int:
        """Return how many attempts run. Any thread may ask."""
        return len(self._running) + len(self._abandoned_threads)

    @property
    def idle_places(self) -> int:
        """Return how many attempts could start at once."""
        return self._places - len(self._running) - len(self._abandoned_threads)

    def running_if_full(self) -> list[ReservedTask]:
        """Return the running tasks, or an empty list while a place is free."""
        if self.idle_places > 0:
            return []
        return [each.task for each in (*self._running.values(), *self._abandoned_threads.values())]

    @property
    def room(self) -> int:
        """Return how many tasks to reserve; 0 while enough of them wait.

        Most of a reservation's cost does not depend on how many tasks it reserves. So tasks are
        not reserved one by one.
        """
        ahead = self._prefetch.limit(self._places - len(self._abandoned_threads))
        idle, waiting = self.idle_places, len(self._prefetched)
        enough = waiting >= max(idle, ahead // 2)
        return 0 if enough else self._bounded(max(0, idle + ahead - waiting))

    def _bounded(self, room: int) -> int:
        """Return how many of so many tasks to reserve.

        While a task may end the process, the tasks whose outcomes are not stored yet count as
        running: they would be lost as well.
        """
        if not (room and self._prefetch.is_paused):
            return room
        return max(0, min(room, self._places - len(self._heartbeats.kept())))

    def runs(self, context: TaskContext) -> bool:
        """Return whether an attempt is running here. Any thread may call it."""
        attempt = self._running.get(context.lease)
        return attempt is not None and attempt.context is context

    def task_under(self, lease: Lease) -> ReservedTask | None:
        """Return the task whose attempt runs under a lease, or ``None``."""
        attempt = self._running.get(lease)
        return None if attempt is None else attempt.task

    def has_completed(self, lease: Lease) -> bool:
        """Return whether the attempt under a lease has completed itself in a transaction."""
        attempt = self._running.get(lease)
        return attempt is not None and attempt.completed

    def end_in_child(self) -> None:
        """End a child process that a task forked, once it comes back to the worker's loop."""
        if threading.get_ident() == self._thread:  # only the forking thread exists in the child
            # Before the loop waits: the events of its descriptors belong to the parent.
            self._runtime.loop.before_waiting(partial(end_child, None))

    def launch(self, task: ReservedTask, lease: Lease, function: TaskFunction[Any]) -> None:
        """Run a reserved task as soon as there is a place for it."""
        if task.crashes:
            self._prefetch.pause()
            if self.idle_places <= len(self._prefetched):
                # A task that crashed its worker may crash this one too. No other task of those that
                # were lost with it may wait behind it.
                self._reporter.add(lease, Outcome.release(lease))
                return
        now = self._monotonic()
        self._prefetched.append(Attempt(task, lease, function, self._runtime, now))
        self.wake()

    def put_back(self, task: ReservedTask, outcome: Outcome) -> None:
        """Report the outcome of a task whose function is unknown here."""
        self.unknown_function_at = self._monotonic()
        self._reporter.add(task.lease, self._runtime.sealed(task, outcome))

    def wake(self) -> None:
        """Start waiting attempts, if there is a place."""
        if self._prefetched:
            self._woken.set()

    async def run(self) -> None:
        """Start attempts as they come and as there are places, until cancelled."""
        while True:
            await self._woken.wait()
            self._start_some()
            if not self._prefetched or self.idle_places <= 0:
                self._woken = anyio.Event()
                self._runtime.freed()
            elif len(self._prefetched) < _MAX_PREFETCH // 2:
                self._runtime.freed()
            # Attempts that never wait must not block the loop.
            await anyio.lowlevel.checkpoint()
            self.interpreter_yield.end_turn()

    def _start_some(self) -> None:
        """Start some of the waiting attempts, for a moment at most."""
        if os.getpid() != self._process:
            end_child(None)
        self._logs_success = logs_success()
        end = self._monotonic() + _LONGEST_TURN
        for _ in range(self._turn):
            if not self._prefetched or self.idle_places <= 0:
                return
            self._start(self._prefetched.popleft())
            if self._monotonic() > end:
                return

    def _start(self, attempt: Attempt) -> None:
        """Start an attempt in a task of its own."""
        try:
            self._running[attempt.lease] = attempt
            self.started += 1
            started_at = self._monotonic()
            if self._events is not None:
                self._events.attempt_started(attempt.task, attempt.lease)
            begun = attempt.begin()
            if begun is None or isinstance(begun, Outcome):
                self._conclude(attempt, begun, self._monotonic() - started_at)
                return
            loop = self._runtime.loop.asyncio
            if loop is not None:
                call = self._run_attempt(attempt, begun, started_at)
                AttemptTask(call, attempt, loop)
            elif self._nurseries is not None:
                run = partial(self._run_attempt, attempt, begun, started_at)
                self._nurseries.start(attempt, run)
        except BaseException:  # an exception of a signal handler ends the worker
            if not attempt.is_hosted:
                self._drop(attempt)
            raise

    async def _run_attempt(
        self, attempt: Attempt, call: Coroutine[Any, Any, Outcome | None], started_at: float
    ) -> None:
        """Await an attempt, and report its outcome; raise nothing."""
        try:
            try:
                outcome = await call
            except BaseException as error:  # noqa: BLE001 - a worker never dies of a task
                leaving = find_signal_exit(error)
                if leaving is None:
                    outcome = self._not_run(attempt, error)
                else:
                    self._runtime.leave(leaving)
                    outcome = Outcome.release(attempt.lease)
            duration = self._monotonic() - started_at
            self._settle(attempt, duration)
            self._conclude(attempt, outcome, duration)
        except BaseException as error:  # noqa: BLE001 - a signal handler's: no user code runs here
            self._runtime.leave(error)
            self._drop(attempt)
        finally:
            attempt.host = None  # breaks the cycle of references between the two

    def _not_run(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that sitq itself failed to run."""
        lease = attempt.lease
        extra = fields_of(self._runtime.worker_id, attempt.task)
        _log.error("task %s: sitq failed to run it", lease.task_id, error=error, extra=extra)
        if issubclass(type(error), NoThreadError):
            return Outcome.unknown_function(lease, _NO_THREAD)  # by no fault of the task's
        kind = error_text(error).partition(":")[0]
        return Outcome.failure(lease, f"{kind}: sitq failed to run the task")

    def _drop(self, attempt: Attempt) -> None:
        """Free the place of an attempt that a signal handler interrupted in sitq's own code.

        The end of the run releases its task, with all other leases.
        """
        self._running.pop(attempt.lease, None)
        if not self._running:
            self._ended.set()

    async def host(self, *, task_status: TaskStatus[None]) -> None:
        """Hold trio's attempts until `close`, shielded from the worker's own cancellation."""
        if self._nurseries is None:
            task_status.started()
        else:
            await self._nurseries.run(task_status=task_status)

    def _settle(self, attempt: Attempt, seconds: float) -> None:
        """Note how long an attempt took; an abandoned call keeps its place."""
        self._prefetch.note(seconds)
        if seconds > _LONG:
            self.hand_back()
        if attempt.leave(partial(self._thread_ended, attempt.lease)):
            self._abandoned_threads[attempt.lease] = attempt

    def _conclude(self, attempt: Attempt, outcome: Outcome | None, duration: float) -> None:
        """Report the outcome of an attempt that took so many seconds, and free its place."""
        if self._running.pop(attempt.lease, None) is None:
            return
        if self._events is not None:
            self._events.attempt_ended(attempt.lease, outcome)
        if outcome is None:
            self._heartbeats.remove((attempt.lease,))
        else:
            self._reporter.add(attempt.lease, self._runtime.sealed(attempt.task, outcome))
        if outcome is not None and outcome.kind is not OutcomeKind.SUCCESS:
            if outcome.kind is OutcomeKind.UNKNOWN_FUNCTION:
                self.started -= 1  # its function was not called
                self.unknown_function_at = self._monotonic()
            if type(outcome) is not UncommittedOutcome:  # the reporter logs it if it is accepted
                log_end(attempt.task, outcome, attempt.raised, self._runtime.worker_id, duration)
        elif self._logs_success and outcome is not None:
            log_success(attempt.task, self._runtime.worker_id, duration)
        self.wake()
        if not self._prefetched:
            self._runtime.freed()
        if not self._running:
            self._ended.set()

    def _thread_ended(self, lease: Lease) -> None:
        """Free the place of an abandoned call; called in its thread."""
        self._runtime.loop.call_soon(partial(self._give_up, lease))

    def _give_up(self, lease: Lease) -> None:
        self._abandoned_threads.pop(lease, None)
        self.wake()
        self._runtime.freed()

    def end(self, lease: Lease, why: EndReason) -> None:
        """End an attempt that runs; one that waits does not start."""
        attempt = self._running.get(lease)
        if attempt is not None:
            attempt.end(why)
            return
        for waiting in self._prefetched:
            if waiting.lease == lease:
                self._prefetched.remove(waiting)
                if why is EndReason.LEASE_LOST:
                    self._heartbeats.remove((lease,))
                else:
                    kind = Outcome.cancelled if why is EndReason.CANCEL else Outcome.release
                    self._reporter.add(lease, kind(lease))
                return

    def hand_back(self, *, at_once: bool = False) -> None:
        """Release the waiting tasks: all of them, or those that have waited for too long."""
        too_long = self._monotonic() - _PREFETCH_TIMEOUT
        while self._prefetched and (at_once or self._prefetched[0].since < too_long):
            attempt = self._prefetched.popleft()
            self._prefetch.note_timeout()
            self._reporter.add(attempt.lease, Outcome.release(attempt.lease))

    def hand_back_queues(self, queues: frozenset[str]) -> None:
        """Release the waiting tasks of paused queues."""
        for attempt in [each for each in self._prefetched if each.task.queue in queues]:
            self._prefetched.remove(attempt)
            self._reporter.add(attempt.lease, Outcome.release(attempt.lease))

    async def finish(self, seconds: float, cleanup_seconds: float) -> None:
        """Let attempts run on for ``seconds``, then end them.

        After the grace, their end may take ``cleanup_seconds``.
        """
        self.hand_back(at_once=True)
        with anyio.move_on_after(seconds):
            await self._all_ended()
        await self._end_all(cleanup_seconds)

    async def close(self, cleanup_seconds: float) -> None:
        """End the running attempts, and return once all have ended."""
        try:
            with anyio.CancelScope(shield=True):
                self._runtime.closing = True
                self.hand_back(at_once=True)
                if self._runtime.loop.asyncio is not None:
                    for attempt in list(self._running.values()):
                        if not attempt.is_hosted:
                            self._drop(attempt)
                await self._end_all(cleanup_seconds)
                await self._all_ended()
        finally:
            _LIVE_POOLS.discard(self)
            if self._nurseries is not None:
                self._nurseries.close()

    async def _end_all(self, seconds: float) -> None:
        """End the running attempts; let the leases run out of those that have not ended then.

        Other workers may run such a task, but not before its lease has run out.
        """
        for attempt in list(self._running.values()):
            attempt.end(EndReason.SHUTDOWN)
        with anyio.move_on_after(self._runtime.grace + seconds):
            await self._all_ended()
        for lease, attempt in self._running.items():
            if self._heartbeats.keeps(lease):
                self._heartbeats.remove((lease,))
                message = "task %s does not end; its lease is no longer renewed"
                extra = fields_of(self._runtime.worker_id, attempt.task)
                _log.warning(message, lease.task_id, extra=extra)

    async def _all_ended(self) -> None:
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()
