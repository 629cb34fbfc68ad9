"""One run of a worker: its services, and the end of both."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq._logging import Log, fields_of
from sitq._loops import SharedEvent
from sitq._signal_exits import find_signal_exit
from sitq.errors import SitqError
from sitq.models import LeaseState, Outcome
from sitq.worker._attempt import EndReason
from sitq.worker._heartbeats import Heartbeats
from sitq.worker._outcome_writer import FailureBackoff, OutcomeWriter
from sitq.worker._registration import Registration
from sitq.worker._reserver import FULL_SWEEP, Reserver
from sitq.worker._runner_pool import RunnerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from sitq.context import TaskContext
    from sitq.models import Lease, ReservedTask
    from sitq.payload.registry import Registry
    from sitq.protocols import Topic
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["WorkerRun"]

_log: Final = Log(__name__)

# Seconds between two looks at the places, and between two warnings that all are taken.
_LOOK_EVERY: Final = 5.0
_WARN_EVERY: Final = 60.0
_MOST_SHOWN: Final = 10
# Seconds that the last outcomes may take to be written.
_LAST_WRITES: Final = 15.0
# Seconds that cancelled tasks may take to end, after their grace.
_CLEANUP_SECONDS: Final = 1.0
# Seconds between two sweeps, between two looks at the leases, and after a full sweep.
_SWEEP_EVERY: Final = 0.5
_WATCH_EVERY: Final = 0.25
_PRUNE_PAUSE: Final = 0.01
# A sweep waits for the worker's own leases and outcomes for one lease, or for so many seconds if
# that is longer.
_LONGEST_WAIT: Final = 15.0


class WorkerRun:
    """One run of a worker, from `start` to its end; a drain ends when nothing is due any more."""

    def __init__(self, runtime: WorkerRuntime, registry: Registry, *, drain: bool) -> None:
        self.finished: Final = SharedEvent()
        self._runtime = runtime
        self._id = runtime.worker_id
        self._backend = runtime.backend
        self._clock = runtime.clock
        self._monotonic = runtime.monotonic
        self._options = runtime.options
        self._events = runtime.events
        # When the next sweep began to wait, by the monotonic clock.
        self._waits_since: float | None = None
        self._heartbeats = Heartbeats(runtime, self._note_lease_state)
        self._reporter = OutcomeWriter(runtime, self._heartbeats)
        self._pool = RunnerPool(runtime, self._heartbeats, self._reporter)
        self._reserver = Reserver(
            runtime, registry, self._heartbeats, self._reporter, self._pool, drain=drain
        )
        self._registration = Registration(
            runtime, registry, self._pool, self._reserver, self._heartbeats.renew_now
        )
        self._heartbeats.report_by(self._registration.report_to, self._registration.deregister_from)

    @property
    def started(self) -> int:
        """Return how many attempts have started."""
        return self._pool.started

    def stop(self) -> None:
        """Reserve no more tasks, and end the run. Any thread may call it."""
        self._runtime.loop.call_soon(self._reserver.stop)

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Work until stopped, drained, or cancelled."""
        try:
            await self._heartbeats.start()
            async with anyio.create_task_group() as services:
                self._runtime.services = services.cancel_scope
                self._runtime.clients.begin(services)
                services.start_soon(self._end_with_heartbeats)
                services.start_soon(self._reporter.run)
                services.start_soon(self._listen, "tasks", self._reserver.look_again)
                services.start_soon(self._listen, "cancels", self._heartbeats.renew_now)
                services.start_soon(self._reporter.write_progress)
                services.start_soon(self._watch)
                services.start_soon(self._sweep)
                services.start_soon(self._registration.watch_unserved)
                try:
                    # On trio the host is shielded, so only `close` ends it.
                    await services.start(self._pool.host)
                    services.start_soon(self._pool.run)
                    services.start_soon(self._watch_places)
                    if self._events is not None:
                        self._events.worker_started(
                            self._options.queues, self._options.max_concurrency
                        )
                    self._registration.log_start()
                    task_status.started()
                    await self._reserver.run()
                    await self._pool.finish(self._options.shutdown_timeout, _CLEANUP_SECONDS)
                finally:
                    try:
                        await _to_the_end(partial(self._pool.close, _CLEANUP_SECONDS))
                    finally:
                        self._reporter.limit_time(_LAST_WRITES)
                services.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            leaving = find_signal_exit(group)
            if leaving is None or _is_cancelled():
                raise  # asyncio has seen it, and ends its loop
            self._runtime.leave(leaving)
        finally:
            # Even a cancelled run writes its outcomes and releases its leases.
            self._pool.hand_back(at_once=True)
            try:
                await _to_the_end(self._write_the_rest)
            finally:
                # A shield does not stop asyncio's own cancellation. The leases must not be
                # renewed for ever.
                self._heartbeats.stop()
                self._registration.log_end()
        if self._runtime.error is not None:
            raise self._runtime.error

    async def _write_the_rest(self) -> None:
        """Write the remaining outcomes, for a few seconds at most, and end the heartbeats."""
        last = self._reporter.limit_time(_LAST_WRITES)
        # A signal handler that raised in sitq's own code may have left leases without an outcome.
        for lease in self._heartbeats.kept():
            if not self._reporter.has_outcome(lease):
                self._reporter.add(lease, Outcome.release(lease))
        with anyio.CancelScope(deadline=last, shield=True) as scope:
            await self._reporter.flush()
            self._heartbeats.stop()
            await self._heartbeats.ended()
        if scope.cancelled_caught:
            message = "worker %s ends with outcomes that could not be stored"
            _log.warning(message, self._id, extra=fields_of(self._id))

    async def _end_with_heartbeats(self) -> None:
        """End the run with an error if the heartbeat thread ends."""
        cause = await self._heartbeats.ended()
        error = SitqError("the worker's heartbeat thread has ended by an error of its own")
        error.__cause__ = cause
        self._runtime.leave(error)

    def runs(self, context: TaskContext) -> bool:
        """Return whether this worker runs an attempt. Any thread may call it."""
        return self._pool.runs(context)

    async def _listen(self, topic: Topic, notify: Callable[[], object]) -> None:
        backoff = FailureBackoff(f"listen for {topic}", 5.0, self._runtime)
        while True:
            try:
                async with self._backend.listen(topic) as listener:
                    notify()
                    while True:
                        await listener.wait()
                        backoff.succeed()
                        notify()
            except Exception as error:  # noqa: BLE001 - the worker polls meanwhile
                await anyio.sleep(backoff.fail(error))

    def _note_lease_state(self, lease: Lease, state: LeaseState) -> None:
        """End an attempt whose lease is lost or whose task is to be cancelled."""
        if state is LeaseState.LOST:
            self._lose(lease)
        else:
            self._pool.end(lease, EndReason.CANCEL)

    def _lose(self, lease: Lease) -> None:
        """End an attempt whose lease is lost, and discard its outcome."""
        if not self._heartbeats.keeps(lease) or self._reporter.is_writing(lease):
            return  # its outcome is stored, or is being written
        self._heartbeats.remove((lease,))
        if self._has_completed(lease):
            return  # most likely its own transaction has ended the lease
        if self._events is not None:
            self._events.lease_lost(lease)
        self._reporter.drop(lease)
        extra = self._fields_of(lease)
        self._pool.end(lease, EndReason.LEASE_LOST)
        _log.warning("task %s: the lease of epoch %d is lost", *lease, extra=extra)

    def _give_up(self, lease: Lease) -> None:
        """End an attempt whose lease could not be renewed in time.

        The task may not have been reclaimed yet. The store then accepts the attempt's outcome.
        """
        self._heartbeats.remove((lease,))
        if self._events is not None:
            self._events.lease_lost(lease, is_overdue=True)
        extra = self._fields_of(lease)
        self._pool.end(lease, EndReason.OVERDUE)
        message = "task %s: the lease of epoch %d is lost: it could not be renewed in time"
        _log.warning(message, *lease, extra=extra)

    def _fields_of(self, lease: Lease) -> dict[str, object]:
        task = self._pool.task_under(lease)
        return fields_of(self._id, task, task_id=lease.task_id, epoch=lease.epoch)

    def _has_completed(self, lease: Lease) -> bool:
        """Return whether a task has completed itself in a transaction, committed or not."""
        return self._pool.has_completed(lease) or self._reporter.expects_refusal(lease)

    async def _watch(self) -> None:
        """End attempts whose lease is overdue, and release tasks that wait for too long."""
        interval = min(_WATCH_EVERY, self._options.lease / 10)
        while True:
            for lease in self._heartbeats.overdue(interval):
                # The open transaction of a task that completed itself prevents the renewal.
                if not self._has_completed(lease) and not self._reporter.is_writing(lease):
                    self._give_up(lease)
            self._pool.hand_back()
            await self._clock.sleep(interval)

    async def _watch_places(self) -> None:
        """Warn once a minute while the same attempts take all places and other tasks are due."""
        before: frozenset[Lease] = frozenset()
        since = self._monotonic()
        while True:
            await self._clock.sleep(_LOOK_EVERY)
            tasks = self._pool.running_if_full()
            now = self._monotonic()
            same = frozenset(task.lease for task in tasks)
            if not same or same != before:
                before, since = same, now
            elif now - since >= _WARN_EVERY:
                with suppress(Exception):  # the next reservation reports it
                    if await self._reserver.sees_due_tasks():
                        since = now
                        _warn_of_saturation(tasks, self._id)

    async def _sweep(self) -> None:
        """Sweep the store periodically."""
        backoff = FailureBackoff("sweep the store", 5.0, self._runtime)
        while True:
            pause = _SWEEP_EVERY
            if self._has_to_wait():
                self._heartbeats.renew_now()
                await self._clock.sleep(min(pause, self._options.lease / 10))
                continue
            try:
                swept = await self._backend.sweep(self._options.max_crashes)
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                pause = backoff.fail(error)
            else:
                backoff.succeed()
                if max(swept) >= FULL_SWEEP:
                    pause = _PRUNE_PAUSE
                if swept.reclaimed:
                    extra = fields_of(self._id, count=swept.reclaimed)
                    message = "%d tasks of lost workers were reclaimed"
                    _log.warning(message, swept.reclaimed, extra=extra)
                    if self._events is not None:
                        self._events.tasks_reclaimed(swept.reclaimed)
            await self._clock.sleep(pause)

    def _has_to_wait(self) -> bool:
        """Return whether a sweep could reclaim a task that this worker still holds.

        The sweep waits until the leases are renewed and the outcomes are written.
        """
        behind = any(not self._has_completed(lease) for lease in self._heartbeats.behind())
        if not behind and not self._reporter.is_failing:
            self._waits_since = None
            return False
        now = self._monotonic()
        if self._waits_since is None:
            self._waits_since = now
        return now - self._waits_since < max(_LONGEST_WAIT, self._options.lease)


def _warn_of_saturation(tasks: list[ReservedTask], worker_id: str) -> None:
    shown = ", ".join(f"{task.id} ({task.function})" for task in tasks[:_MOST_SHOWN])
    more = len(tasks) - _MOST_SHOWN
    _log.warning(
        "no task has ended for a minute, all %d places are taken, and others are due: %s%s; "
        "a function that does not end, or that waits for a task of the same worker, keeps its "
        "place: give it a timeout, or raise max_concurrency",
        len(tasks),
        shown,
        f" and {more} more" if more > 0 else "",
        extra=fields_of(worker_id, task_ids=[task.id for task in tasks]),
    )


def _is_cancelled() -> bool:
    """Return whether asyncio has cancelled the caller's task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # trio
        return False
    return task is not None and task.cancelling() > 0


async def _to_the_end(work: Callable[[], Awaitable[None]]) -> None:
    """Await shielded work to its end, and then raise the caller's cancellation, if any.

    A shield does not stop asyncio's own cancellation, such as that of ``asyncio.run``.
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            await work()
            break
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
