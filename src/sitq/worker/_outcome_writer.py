"""Write outcomes to the store in groups, and keep them while the store is unavailable.

A task that completes itself may have a transaction that is still open when its attempt ends. The
store cannot accept or refuse its outcome before that transaction has ended. So such an outcome is
written by itself, and no other has to wait for it.
"""

from __future__ import annotations

import random
from contextvars import copy_context
from itertools import islice
from typing import TYPE_CHECKING, Final

import anyio

from sitq._logging import Log, fields_of
from sitq._system_errors import UNSTORABLE_ERROR, UNSTORABLE_VALUE
from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFullError,
    BackendValueError,
)
from sitq.models import Outcome, OutcomeKind
from sitq.worker._outcomes import delay_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq.models import Lease, Progress
    from sitq.worker._heartbeats import Heartbeats
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["FailureBackoff", "OutcomeWriter", "UncommittedOutcome", "storable_outcome"]

_log: Final = Log(__name__)

_PASSING: Final = (BackendBusyError, BackendConnectionError, BackendFullError)
_GROUP: Final = 1000


class UncommittedOutcome(Outcome):
    """The outcome of a task that completed itself in a transaction that was not committed.

    If the transaction was committed, the store refuses this outcome, which is correct.
    """

    @classmethod
    def of(cls, outcome: Outcome) -> UncommittedOutcome:
        """Return the same outcome as one that the store is expected to refuse."""
        return cls(**dict(outcome))


def storable_outcome(outcome: Outcome) -> Outcome | None:
    """Return an outcome that every store can keep: plain text, no value and no traceback.

    A retry becomes a retry with a plain text; if that is refused too, a failure; then ``None``.
    """
    if outcome.kind is OutcomeKind.FAILURE and outcome.error in {
        UNSTORABLE_ERROR,
        UNSTORABLE_VALUE,
    }:
        return None
    if outcome.kind is OutcomeKind.RETRY and outcome.error != UNSTORABLE_ERROR:
        return Outcome.retry(outcome.lease, outcome.delay, UNSTORABLE_ERROR)
    is_success = outcome.kind is OutcomeKind.SUCCESS
    return Outcome.failure(outcome.lease, UNSTORABLE_VALUE if is_success else UNSTORABLE_ERROR)


class FailureBackoff:
    """Counts failures in a row of one activity: logs the first, and returns growing pauses."""

    def __init__(self, activity: str, longest: float, runtime: WorkerRuntime) -> None:
        self._activity = activity
        self._extra = fields_of(runtime.worker_id)
        self._longest = longest
        self._events = runtime.events
        self._failures = 0

    def fail(self, error: Exception) -> float:
        """Note a failure; return the seconds to pause."""
        self._failures += 1
        if self._failures == 1:
            # sitq's own errors say enough; any other is a bug, and its traceback is logged.
            trace = None if isinstance(error, BackendError) else error
            message = "cannot %s, will try again: %s"
            _log.warning(message, self._activity, error, error=trace, extra=self._extra)
        if self._events is not None:
            self._events.store_failed(self._activity, self._failures, error)
        longest = min(self._longest, 0.05 * 2.0 ** min(self._failures, 10))
        return random.uniform(longest / 2, longest)

    @property
    def is_failing(self) -> bool:
        """Return whether the last try failed."""
        return self._failures > 0

    def succeed(self) -> None:
        """Note a success."""
        failures, self._failures = self._failures, 0
        if failures:
            message = "can %s again after %d failures"
            _log.info(message, self._activity, failures, extra=self._extra)


class OutcomeWriter:
    """Writes outcomes until each is accepted, refused, or its lease is lost; and progress."""

    def __init__(self, runtime: WorkerRuntime, heartbeats: Heartbeats) -> None:
        self._runtime = runtime
        self._backend = runtime.backend
        self._heartbeats = heartbeats
        self._waiting: dict[Lease, Outcome] = {}
        self._group: dict[Lease, Outcome] = {}
        # Outcomes of an interrupted write, which may have been stored.
        self._maybe_stored: set[Lease] = set()
        self._writing = False
        self._added = anyio.Event()
        self._empty = anyio.Event()
        self._empty.set()
        # Uncommitted outcomes, each of which is written by itself.
        self._uncommitted: dict[Lease, Outcome] = {}
        self._judged = anyio.Event()
        # Starts a task that writes one, while the reporter runs.
        self._start_writer: Callable[[Outcome], None] | None = None
        self._progress: dict[Lease, Progress] = {}
        self._progressed = anyio.Event()
        runtime.note = self._note_progress
        self._deadline = float("inf")
        self._sending = anyio.CancelScope()
        self._events = runtime.events
        self._backoff = FailureBackoff("store outcomes", 2.0, runtime)

    def add(self, lease: Lease, outcome: Outcome) -> None:
        """Write the outcome of a lease soon."""
        if self._progress:
            self._progress.pop(lease, None)
        # `isinstance` on a pydantic model takes as long as the rest of this method.
        if type(outcome) is UncommittedOutcome:
            self._uncommitted[lease] = outcome
            if self._start_writer is not None:
                self._start_writer(outcome)
            return
        self._waiting[lease] = outcome
        if len(self._waiting) == 1 and not self._writing:
            self._update()

    def drop(self, lease: Lease) -> None:
        """Forget the outcome of a lease that is lost."""
        outcome = self._waiting.pop(lease, None)
        if outcome is not None and self._events is not None:
            self._events.outcome_dropped(outcome)
        if not self._writing:
            self._update()

    @property
    def is_failing(self) -> bool:
        """Return whether the store does not accept the outcomes that wait."""
        return self._backoff.is_failing and bool(self._waiting or self._group)

    def is_writing(self, lease: Lease) -> bool:
        """Return whether the outcome of a lease is being written at this moment."""
        return lease in self._group

    def has_outcome(self, lease: Lease) -> bool:
        """Return whether an outcome of a lease waits to be written, or is being written."""
        return lease in self._waiting or lease in self._group or lease in self._uncommitted

    def expects_refusal(self, lease: Lease) -> bool:
        """Return whether the outcome that waits for a lease is an uncommitted one."""
        return lease in self._uncommitted

    def _update(self) -> None:
        """Set the two events according to the outcomes that wait."""
        if self._waiting:
            self._added.set()
            if self._empty.is_set():
                self._empty = anyio.Event()
        else:
            self._empty.set()
            if self._added.is_set():
                self._added = anyio.Event()

    async def written(self) -> None:
        """Return once nothing waits to be written."""
        await self._empty.wait()
        while self._uncommitted:
            await self._judged.wait()

    async def run(self) -> None:
        """Write outcomes as they come, until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                # The callers are attempts, whose contexts are not for the writers.
                context = copy_context()

                def start_writer(outcome: Outcome) -> None:
                    context.run(lambda: group.start_soon(self._write_alone, outcome))

                self._start_writer = start_writer
                while True:
                    await self._added.wait()
                    await self._flush()
        finally:
            self._start_writer = None

    async def flush(self) -> None:
        """Write all that waits; called once `run` has ended."""
        await self._flush()
        async with anyio.create_task_group() as group:
            for outcome in list(self._uncommitted.values()):
                group.start_soon(self._write_alone, outcome)

    def limit_time(self, seconds: float) -> float:
        """Limit the time that is left for writing; return the deadline by the loop's clock."""
        if self._deadline == float("inf"):
            self._deadline = anyio.current_time() + seconds
            self._sending.deadline = self._deadline
        return self._deadline

    async def _flush(self) -> None:
        """Write what waits; a cancellation does not interrupt a write."""
        if self._writing:
            await self._empty.wait()
            return
        self._writing = True
        try:
            while self._waiting:
                self._group = self._next_group()
                try:
                    pause = await self._write(self._group)
                except BaseException:
                    # asyncio's own cancellation, which a shield does not stop. The last flush
                    # writes them again, and the store refuses those that it has.
                    self._maybe_stored.update(self._group)
                    self._waiting = self._group | self._waiting
                    raise
                finally:
                    self._group = {}
                if pause:
                    await anyio.sleep(pause)
        finally:
            self._writing = False
            self._update()

    async def _write(self, group: dict[Lease, Outcome]) -> float:
        """Write one group; return the seconds to pause if that failed."""
        try:
            accepted = await self._send(list(group.values()))
        except _PASSING as error:
            self._waiting = group | self._waiting
            return self._backoff.fail(error)
        except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
            if len(group) > 1:
                # One of the group may be the reason, so each is written by itself.
                return max([await self._write({each: group[each]}) for each in group])
            ((lease, outcome),) = group.items()
            self._waiting[lease], pause = self._next_try(outcome, error)
            return pause
        self._backoff.succeed()
        self._note_accepted(group, accepted)
        return 0.0

    async def _send(self, outcomes: list[Outcome]) -> list[bool]:
        """Write outcomes to the store; only the deadline of `limit_time` interrupts that."""
        with anyio.CancelScope(shield=True, deadline=self._deadline) as self._sending:
            return await self._backend.finish(outcomes)
        raise BackendBusyError("finish: the store has not answered in time")

    def _next_group(self) -> dict[Lease, Outcome]:
        if len(self._waiting) <= _GROUP:
            group, self._waiting = self._waiting, {}
            return group
        return {lease: self._waiting.pop(lease) for lease in list(islice(self._waiting, _GROUP))}

    def _next_try(self, outcome: Outcome, error: Exception) -> tuple[Outcome, float]:
        """Return what to write after an outcome failed by itself, and the seconds to pause."""
        plain = storable_outcome(outcome) if isinstance(error, BackendValueError) else None
        if plain is None:
            return outcome, self._backoff.fail(error)
        _log.error(
            "task %s: the store cannot keep the %s of epoch %d, so a plain one takes its place: %s",
            outcome.task_id,
            outcome.kind,
            outcome.epoch,
            error,
            extra=self._fields_of(outcome.lease),
        )
        return plain, 0.0

    def _fields_of(self, lease: Lease) -> dict[str, object]:
        return fields_of(self._runtime.worker_id, task_id=lease.task_id, epoch=lease.epoch)

    async def _write_alone(self, outcome: Outcome) -> None:
        """Write an uncommitted outcome until the store accepts or refuses it.

        It may be written twice: the second write changes nothing.
        """
        is_accepted: bool | None = None
        while is_accepted is None:
            try:
                (is_accepted,) = await self._backend.finish([outcome])
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                outcome, pause = self._next_try(outcome, error)
                await anyio.sleep(pause)
        self._backoff.succeed()
        if is_accepted:
            log = {OutcomeKind.FAILURE: _log.error, OutcomeKind.RETRY: _log.warning}
            log.get(outcome.kind, _log.info)(
                "task %s: the transaction that completed epoch %d was not committed; the task %s",
                outcome.task_id,
                outcome.epoch,
                _end_in_words(outcome),
                extra=self._fields_of(outcome.lease),
            )
        if self._events is not None:
            if is_accepted:
                self._events.outcome_stored(outcome, accepted=True)
            else:
                await self._events.completion_refused(outcome)
        self._uncommitted.pop(outcome.lease, None)
        self._note_stored([outcome.lease])
        self._judged.set()
        self._judged = anyio.Event()

    def _note_stored(self, leases: list[Lease]) -> None:
        self._heartbeats.remove(leases)
        self._runtime.freed()

    def _note_accepted(self, group: dict[Lease, Outcome], accepted: list[bool]) -> None:
        self._note_stored(list(group))
        for outcome, was_accepted in zip(group.values(), accepted, strict=True):
            if not was_accepted and outcome.lease not in self._maybe_stored:
                _log.warning(
                    "task %s: the %s of epoch %d came after its lease was lost; it changed nothing",
                    outcome.task_id,
                    outcome.kind,
                    outcome.epoch,
                    extra=self._fields_of(outcome.lease),
                )
            if self._events is not None:
                # The store refuses an outcome that it has stored in the interrupted write.
                is_stored = was_accepted or outcome.lease in self._maybe_stored
                self._events.outcome_stored(outcome, accepted=is_stored)

    def _note_progress(self, lease: Lease, progress: Progress) -> None:
        """Keep the progress of a task until it is stored. Any thread may call it."""
        self._progress[lease] = progress
        self._runtime.loop.call_soon(self._progressed.set)

    async def write_progress(self) -> None:
        """Write the progress of running tasks as it comes, until cancelled."""
        while True:
            await self._progressed.wait()
            self._progressed = anyio.Event()
            while self._progress:
                # `popitem` is atomic. Tasks in threads add entries meanwhile.
                lease, progress = self._progress.popitem()
                try:
                    await self._backend.set_progress(lease, progress)
                except Exception as error:  # noqa: BLE001 - the next progress may be stored
                    message = "task %s: its progress was not stored: %s"
                    extra = self._fields_of(lease)
                    _log.warning(message, lease.task_id, error, extra=extra)


def _end_in_words(outcome: Outcome) -> str:
    if outcome.kind is OutcomeKind.RETRY:
        return f"failed; retrying {delay_text(outcome.delay)}"
    return {
        OutcomeKind.FAILURE: "failed",
        OutcomeKind.CANCELLED: "was cancelled",
    }.get(outcome.kind, "is handed back")
