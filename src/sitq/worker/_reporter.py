"""Write outcomes to the store in groups, and keep them while the store is unavailable.

A task that completes itself may have a transaction that is still open when its attempt ends. The
store cannot accept or refuse its outcome before that transaction has ended. So such an outcome is
written by itself, and no other has to wait for it.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING, Final

import anyio

from sitq._logging import Log
from sitq.errors import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFullError,
    BackendValueError,
)
from sitq.models import Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq.models import Lease
    from sitq.protocols import Backend

__all__ = [
    "FailureBackoff",
    "Reporter",
    "UncommittedOutcome",
    "UncommittedOutcomes",
    "storable_outcome",
]

_log: Final = Log(__name__)

_ERROR: Final = "BackendValueError: the store cannot keep the error of this attempt"
_VALUE: Final = "BackendValueError: the store cannot keep the result of this attempt"


def storable_outcome(outcome: Outcome, error: BackendValueError) -> Outcome | None:
    """Return an outcome that every store can keep: plain text, no value and no traceback.

    A retry stays one. If that is refused as well, a failure replaces it, and ``None`` that one.

    Args:
        outcome: what the store has refused.
        error: what the store said; it goes into the log.
    """
    if outcome.kind is OutcomeKind.FAILURE and outcome.error in {_ERROR, _VALUE}:
        return None
    _log.error(
        "task %s: the store cannot keep the %s of epoch %d, so a plain one takes its place: %s",
        outcome.task_id,
        outcome.kind,
        outcome.epoch,
        error,
    )
    if outcome.kind is OutcomeKind.RETRY and outcome.error != _ERROR:
        return Outcome.retry(outcome.lease, outcome.delay, _ERROR)
    return Outcome.failure(outcome.lease, _VALUE if outcome.kind is OutcomeKind.SUCCESS else _ERROR)


class UncommittedOutcome(Outcome):
    """The outcome of a task that completed itself in a transaction that was not committed.

    If the transaction was committed, the store refuses this outcome, which is correct.
    """

    @classmethod
    def of(cls, outcome: Outcome) -> UncommittedOutcome:
        """Return the same outcome as one that the store is expected to refuse."""
        return cls(**dict(outcome))


def _log_end(outcome: Outcome) -> None:
    """Log that a task has not completed itself after all."""
    log = {OutcomeKind.FAILURE: _log.error, OutcomeKind.RETRY: _log.warning}
    log.get(outcome.kind, _log.info)(
        "task %s: the transaction that completed epoch %d was not committed; it ended as: %s",
        outcome.task_id,
        outcome.epoch,
        outcome.kind,
    )


class UncommittedOutcomes:
    """Writes uncommitted outcomes, each by itself until the store accepts or refuses it.

    One may be written twice: the second write changes nothing.

    Args:
        backend: an open backend.
        done: called with the leases whose outcomes are accepted or refused.
        backoff: counts the failures.
    """

    def __init__(
        self, backend: Backend, done: Callable[[list[Lease]], None], backoff: FailureBackoff
    ) -> None:
        self._backend = backend
        self._done = done
        self._backoff = backoff
        self._waiting: dict[Lease, UncommittedOutcome] = {}
        self._new: list[UncommittedOutcome] = []
        self._added = anyio.Event()
        self._judged = anyio.Event()

    def add(self, outcome: UncommittedOutcome) -> None:
        """Write an outcome soon."""
        self._waiting[outcome.lease] = outcome
        self._new.append(outcome)
        self._added.set()

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._waiting

    async def written(self) -> None:
        """Return once each has been accepted or refused."""
        while self._waiting:
            await self._judged.wait()

    async def run(self) -> None:
        """Write outcomes as they come, until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                await self._added.wait()
                self._added = anyio.Event()
                new, self._new = self._new, []
                for outcome in new:
                    group.start_soon(self._write, outcome)

    async def flush(self) -> None:
        """Write all that wait; called once `run` has ended."""
        async with anyio.create_task_group() as group:
            for outcome in list(self._waiting.values()):
                group.start_soon(self._write, outcome)

    async def _write(self, outcome: Outcome) -> None:
        is_accepted = False
        while True:
            try:
                (is_accepted,) = await self._backend.finish([outcome])
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                plain = (
                    storable_outcome(outcome, error)
                    if isinstance(error, BackendValueError)
                    else None
                )
                if plain is None:
                    await anyio.sleep(self._backoff.fail(error))
                else:
                    outcome = plain
            else:
                break
        self._backoff.succeed()
        if is_accepted:
            _log_end(outcome)
        del self._waiting[outcome.lease]
        self._done([outcome.lease])
        self._judged.set()
        self._judged = anyio.Event()


_PASSING: Final = (BackendBusyError, BackendConnectionError, BackendFullError)
_GROUP: Final = 1000


class FailureBackoff:
    """Counts failures in a row of one activity: logs the first, and returns growing pauses."""

    def __init__(self, activity: str, longest: float) -> None:
        self._activity = activity
        self._longest = longest
        self._failures = 0

    def fail(self, error: Exception) -> float:
        """Note a failure; return the seconds to pause."""
        self._failures += 1
        if self._failures == 1:
            # sitq's own errors say enough; any other is a bug, and its traceback is logged.
            trace = None if isinstance(error, BackendError) else error
            _log.warning("cannot %s, will try again: %s", self._activity, error, error=trace)
        longest = min(self._longest, 0.05 * 2.0 ** min(self._failures, 10))
        return random.uniform(longest / 2, longest)

    @property
    def is_failing(self) -> bool:
        """True if the last try failed."""
        return self._failures > 0

    def succeed(self) -> None:
        """Note a success."""
        failures, self._failures = self._failures, 0
        if failures:
            _log.info("can %s again after %d failures", self._activity, failures)


class Reporter:
    """Writes outcomes until each is accepted, refused, or its lease is lost.

    Args:
        backend: an open backend.
        done: called with the leases whose outcomes are accepted or refused.
    """

    def __init__(self, backend: Backend, done: Callable[[list[Lease]], None]) -> None:
        self._backend = backend
        self._done = done
        self._waiting: dict[Lease, Outcome] = {}
        self._group: dict[Lease, Outcome] = {}
        # Outcomes of an interrupted write, which may have been stored.
        self._unsure: set[Lease] = set()
        self._writing = False
        self._added = anyio.Event()
        self._empty = anyio.Event()
        self._empty.set()
        self._deadline = float("inf")
        self._sending = anyio.CancelScope()
        self._backoff = FailureBackoff("store outcomes", longest=2.0)
        self._uncommitted = UncommittedOutcomes(backend, done, self._backoff)

    def add(self, lease: Lease, outcome: Outcome) -> None:
        """Write the outcome of a lease soon."""
        # `isinstance` on a pydantic model takes as long as the rest of this method.
        if type(outcome) is UncommittedOutcome:
            self._uncommitted.add(outcome)
            return
        self._waiting[lease] = outcome
        if len(self._waiting) == 1 and not self._writing:
            self._update()

    def drop(self, lease: Lease) -> None:
        """Forget the outcome of a lease that is lost."""
        self._waiting.pop(lease, None)
        if not self._writing:
            self._update()

    @property
    def is_failing(self) -> bool:
        """True while the store does not accept the outcomes that wait."""
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
        await self._uncommitted.written()

    async def run(self) -> None:
        """Write outcomes as they come, until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._uncommitted.run)
            while True:
                await self._added.wait()
                await self._flush()

    async def flush(self) -> None:
        """Write all that waits; called once `run` has ended."""
        await self._flush()
        await self._uncommitted.flush()

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
                pause = await self._write()
                if pause:
                    await anyio.sleep(pause)
        finally:
            self._writing = False
            self._update()

    async def _write(self) -> float:
        """Write one group; return the seconds to pause if that failed."""
        group = self._group = self._next_group()
        try:
            accepted = await self._send(list(group.values()))
        except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
            if isinstance(error, _PASSING):
                self._waiting = group | self._waiting
                return self._backoff.fail(error)
            if len(group) == 1:
                return self._try_again(*group.popitem(), error)
            # One of the group may be the reason, so each is written by itself.
            return await self._write_each(group)
        except BaseException:
            self._take_back(group)
            raise
        finally:
            self._group = {}
        self._backoff.succeed()
        self._note_accepted(group, accepted)
        return 0.0

    def _take_back(self, group: dict[Lease, Outcome]) -> None:
        """Keep outcomes whose write was interrupted by asyncio's own cancellation.

        A shield does not stop that one. The last flush writes them again, and the store refuses
        those that it has.
        """
        self._unsure.update(group)
        self._waiting = group | self._waiting

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

    async def _write_each(self, group: dict[Lease, Outcome]) -> float:
        pause = 0.0
        rest = dict(group)
        try:
            for lease, outcome in group.items():
                try:
                    accepted = await self._send([outcome])
                except Exception as error:  # noqa: BLE001 - see above
                    pause = max(pause, self._try_again(lease, outcome, error))
                else:
                    self._note_accepted({lease: outcome}, accepted)
                del rest[lease]
        except BaseException:
            self._take_back(rest)
            raise
        return pause

    def _try_again(self, lease: Lease, outcome: Outcome, error: Exception) -> float:
        """Keep an outcome that failed by itself for another try; return the seconds to pause."""
        plain = storable_outcome(outcome, error) if isinstance(error, BackendValueError) else None
        self._waiting[lease] = plain or outcome
        return 0.0 if plain else self._backoff.fail(error)

    def _note_accepted(self, group: dict[Lease, Outcome], accepted: list[bool]) -> None:
        self._done(list(group))
        for outcome, was_accepted in zip(group.values(), accepted, strict=True):
            if not was_accepted and outcome.lease not in self._unsure:
                _log.warning(
                    "task %s: the %s of epoch %d came after its lease was lost; it changed nothing",
                    outcome.task_id,
                    outcome.kind,
                    outcome.epoch,
                )
