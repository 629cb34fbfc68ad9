"""One run of a worker, from `start` to its end: reserve, run, report."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from sitq._exceptions import exit_of
from sitq._logging import Log
from sitq._loops import LoopRef, SharedEvent
from sitq.errors import SitqError
from sitq.models import LeaseState, Outcome
from sitq.worker._attempt import EndReason
from sitq.worker._heartbeats import Heartbeats
from sitq.worker._reporter import FailureBackoff, Reporter
from sitq.worker._reserver import FULL_SWEEP, Reserver
from sitq.worker._runner_pool import RunnerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from sitq.context import TaskContext
    from sitq.models import Lease, Progress, ReservedTask
    from sitq.payload.registry import Registry
    from sitq.protocols import Backend, Clock, Listener, Serializer, Topic
    from sitq.worker._options import WorkerOptions

__all__ = ["WorkerRun", "warn_of_saturation"]

_log: Final = Log(__name__)

_LOOK_EVERY: Final = 5.0
_WARN_EVERY: Final = 60.0
_MOST_SHOWN: Final = 10


async def warn_of_saturation(
    clock: Clock,
    takes_all_places: Callable[[], list[ReservedTask]],
    has_due_tasks: Callable[[], Awaitable[bool]],
) -> None:
    """Warn once a minute while the same attempts take all places and others are due; for ever.

    Args:
        clock: the worker's clock.
        takes_all_places: returns the tasks that run; none while a place is free.
        has_due_tasks: returns whether the store has tasks that could start now.
    """
    before: frozenset[tuple[str, int]] = frozenset()
    since = clock.monotonic()
    while True:
        await clock.sleep(_LOOK_EVERY)
        tasks = takes_all_places()
        now = clock.monotonic()
        same = frozenset((task.id, task.epoch) for task in tasks)
        if not same or same != before:
            before, since = same, now
        elif now - since >= _WARN_EVERY and await has_due_tasks():
            since = now
            _warn(tasks)


def _warn(tasks: list[ReservedTask]) -> None:
    shown = ", ".join(f"{task.id} ({task.function})" for task in tasks[:_MOST_SHOWN])
    more = len(tasks) - _MOST_SHOWN
    _log.warning(
        "no task has ended for a minute, all %d places are taken, and others are due: %s%s; "
        "a function that does not end, or that waits for a task of the same worker, keeps its "
        "place: give it a timeout, or raise max_concurrency",
        len(tasks),
        shown,
        f" and {more} more" if more > 0 else "",
        extra={"task_ids": [task.id for task in tasks]},
    )


# How long the last outcomes may take to be written, and cancelled tasks to end, in seconds.
_LAST_WRITES: Final = 15.0
_CLEANUP_SECONDS: Final = 1.0
_SWEEP_EVERY: Final = 0.5
_WATCH_EVERY: Final = 0.25
_PRUNE_PAUSE: Final = 0.01
# How long a sweep waits for the worker's own leases and outcomes, in seconds; or one lease.
_LONGEST_WAIT: Final = 15.0


class WorkerRun:
    """The working state of a worker that runs.

    Args:
        worker_id: random, new for each run.
        backend: an open backend.
        serializer: rebuilds arguments, encodes results.
        registry: the functions that may run.
        options: the worker's settings.
        drain: end when nothing is due any more.
    """

    def __init__(
        self,
        worker_id: str,
        backend: Backend,
        serializer: Serializer,
        registry: Registry,
        options: WorkerOptions,
        *,
        drain: bool,
    ) -> None:
        self.finished: Final = SharedEvent()
        # What has ended the worker before its time.
        self._error: BaseException | None = None
        self._services: anyio.CancelScope | None = None
        self._id = worker_id
        self._backend = backend
        self._clock = backend.clock
        self._serializer = serializer
        self._options = options
        self._loop = LoopRef()
        self._pool: RunnerPool | None = None
        # Since when the next sweep waits.
        self._waits_since: float | None = None
        self._progress: dict[Lease, Progress] = {}
        self._progressed = anyio.Event()
        self._heartbeats = Heartbeats(backend, options.lease, self._loop, self._note_lease_state)
        self._reporter = Reporter(backend, self._heartbeats.remove)
        self._reserver = Reserver(
            worker_id, backend, registry, options, self._heartbeats, self._reporter, drain=drain
        )

    @property
    def started(self) -> int:
        """How many attempts have begun."""
        return 0 if self._pool is None else self._pool.started

    def stop(self) -> None:
        """Reserve no more and come to an end; from any thread."""
        self._loop.call_soon(self._reserver.stop)

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Work until stopped, drained, or cancelled."""
        try:
            await self._heartbeats.start()
            async with anyio.create_task_group() as services:
                self._services = services.cancel_scope
                services.start_soon(self._end_with_beats, services.cancel_scope)
                services.start_soon(self._reporter.run)
                services.start_soon(self._listen, "tasks", self._reserver.listen_to)
                services.start_soon(self._listen, "cancels", lambda _: self._heartbeats.renew_now())
                services.start_soon(self._note_progress)
                services.start_soon(self._watch)
                services.start_soon(self._sweep)
                pool = self._pool = self._make_pool()
                try:
                    # On trio the host is shielded: only `close` ends it.
                    await services.start(pool.host)
                    services.start_soon(pool.run)
                    services.start_soon(
                        warn_of_saturation,
                        self._clock,
                        pool.take_all_places,
                        self._reserver.has_due_tasks,
                    )
                    task_status.started()
                    await self._reserver.run(pool)
                    await pool.finish(self._options.shutdown_timeout, _CLEANUP_SECONDS)
                finally:
                    try:
                        await _to_the_end(partial(pool.close, _CLEANUP_SECONDS))
                    finally:
                        self._reporter.hurry(_LAST_WRITES)
                services.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            leaving = exit_of(group)
            if leaving is None or _is_cancelled():
                raise  # asyncio has seen it, and ends its loop
            self._error = self._error or leaving
        finally:
            # What is ready is written, and what is held handed back, even if all is cancelled.
            if self._pool is not None:
                self._pool.hand_back(at_once=True)
            try:
                await _to_the_end(self._write_the_rest)
            finally:
                # asyncio's own cancellation knows no shield; a lease must not be renewed for ever.
                self._heartbeats.stop()
        if (error := self._error or self._reserver.error) is not None:
            raise error

    async def _write_the_rest(self) -> None:
        """Write what waits, for some seconds at the most, and end the heartbeats."""
        last = self._reporter.hurry(_LAST_WRITES)
        # What a signal handler raises in sitq's own code may have cut off the way of some.
        for lease in self._heartbeats.kept():
            if not self._reporter.has_outcome(lease):
                self._reporter.add(lease, Outcome.release(lease))
        with anyio.CancelScope(deadline=last, shield=True) as scope:
            await self._reporter.flush()
            self._heartbeats.stop()
            await self._heartbeats.ended()
        if scope.cancelled_caught:
            _log.warning("worker %s ends with outcomes that could not be stored", self._id)

    def _leave(self, error: BaseException) -> None:
        """End the worker by what a signal has raised while a task ran."""
        self._error = self._error or error
        if self._services is not None:
            self._services.cancel()

    async def _end_with_beats(self, services: anyio.CancelScope) -> None:
        """End the worker, with an error, if nothing renews its leases any more."""
        cause = await self._heartbeats.ended()
        error = SitqError("the worker's heartbeat thread has ended by an error of its own")
        error.__cause__ = cause
        self._error = self._error or error
        services.cancel()

    def _make_pool(self) -> RunnerPool:
        return RunnerPool(
            self._serializer,
            self._options,
            self._backend,
            self._loop,
            self._report,
            self._take_progress,
            self._reserver.freed,
            self._id,
            self._leave,
        )

    def runs(self, context: TaskContext) -> bool:
        """Return whether a task is one that this worker runs; from any thread."""
        return self._pool is not None and self._pool.runs(context)

    # -- reporting ---------------------------------------------------------------------------

    def _report(self, lease: Lease, outcome: Outcome | None) -> None:
        if self._progress:
            self._progress.pop(lease, None)
        if outcome is None:
            self._heartbeats.remove((lease,))
        else:
            self._reporter.add(lease, outcome)

    # -- the services beside -----------------------------------------------------------------

    async def _listen(self, topic: Topic, heard: Callable[[Listener], object]) -> None:
        backoff = FailureBackoff(f"listen for {topic}", longest=5.0)
        while True:
            try:
                async with self._backend.listen(topic) as listener:
                    heard(listener)
                    while True:
                        await listener.wait()
                        backoff.succeed()
                        heard(listener)
            except Exception as error:  # noqa: BLE001 - polling goes on meanwhile
                await anyio.sleep(backoff.fail(error))

    def _note_lease_state(self, lease: Lease, state: LeaseState) -> None:
        """End the attempt whose lease is lost or whose task is to be cancelled."""
        if state is LeaseState.LOST:
            self._lose(lease)
        elif self._pool is not None:
            self._pool.end(lease, EndReason.CANCEL)

    def _lose(self, lease: Lease) -> None:
        """End an attempt whose lease the store says is lost; nothing of it counts any more."""
        if not self._heartbeats.keeps(lease) or self._reporter.is_writing(lease):
            return  # its outcome is stored, or the store is about to judge it
        self._heartbeats.remove((lease,))
        if self._has_completed(lease):
            return  # by its own transaction, most likely: the store judges when the function ends
        self._reporter.drop(lease)
        if self._pool is not None:
            self._pool.end(lease, EndReason.LEASE_LOST)
        _log.warning("task %s: the lease of epoch %d is lost", lease.task_id, lease.epoch)

    def _give_up(self, lease: Lease) -> None:
        """End an attempt whose lease could not be renewed in time.

        Nobody may have reclaimed the task: the store judges what the attempt still gives.
        """
        self._heartbeats.remove((lease,))
        if self._pool is not None:
            self._pool.end(lease, EndReason.OVERDUE)
        _log.warning(
            "task %s: the lease of epoch %d is lost: it could not be renewed in time",
            lease.task_id,
            lease.epoch,
        )

    def _has_completed(self, lease: Lease) -> bool:
        """Return whether an attempt has completed itself in a transaction, committed or not."""
        is_running = self._pool is not None and self._pool.has_completed(lease)
        return is_running or self._reporter.expects_refusal(lease)

    async def _watch(self) -> None:
        """Give up leases that could not be renewed in time, and what waits for too long."""
        interval = min(_WATCH_EVERY, self._options.lease / 10)
        while True:
            for lease in self._heartbeats.overdue(interval):
                # The transaction of a task that completed itself may hold the task.
                if not self._has_completed(lease) and not self._reporter.is_writing(lease):
                    self._give_up(lease)
            if self._pool is not None:
                self._pool.hand_back()
            await self._clock.sleep(interval)

    async def _sweep(self) -> None:
        """Do, again and again, what time has made due in the store."""
        backoff = FailureBackoff("sweep the store", longest=5.0)
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
                    _log.warning("%d tasks of lost workers were reclaimed", swept.reclaimed)
            await self._clock.sleep(pause)

    def _has_to_wait(self) -> bool:
        """Return whether a sweep could reclaim a task that this worker itself still holds.

        Its heartbeat has to have its chance first, and an outcome that is there its judgement.
        """
        behind = any(not self._has_completed(lease) for lease in self._heartbeats.behind())
        if not behind and not self._reporter.is_failing:
            self._waits_since = None
            return False
        now = self._clock.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        return now - self._waits_since < max(_LONGEST_WAIT, self._options.lease)

    def _take_progress(self, lease: Lease, progress: Progress) -> None:
        """Note what a task tells of itself; from any thread."""
        self._progress[lease] = progress
        self._loop.call_soon(self._tell_of_progress)

    def _tell_of_progress(self) -> None:
        self._progressed.set()

    async def _note_progress(self) -> None:
        while True:
            await self._progressed.wait()
            self._progressed = anyio.Event()
            while self._progress:
                # One step of the interpreter's: tasks in threads add to it meanwhile.
                lease, progress = self._progress.popitem()
                try:
                    await self._backend.set_progress(lease, progress)
                except Exception as error:  # noqa: BLE001 - the next word may get through
                    _log.warning("task %s: its progress was not stored: %s", lease.task_id, error)


def _is_cancelled() -> bool:
    """Return whether asyncio has cancelled the caller's task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # trio
        return False
    return task is not None and task.cancelling() > 0


async def _to_the_end(work: Callable[[], Awaitable[None]]) -> None:
    """Await some shielded work to its end, and raise then what has cancelled the caller.

    asyncio's own cancellation knows no shield: that of ``asyncio.run``, of all tasks, say.
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
