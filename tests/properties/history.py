"""A history that watches a store through its port and holds it to the rules of a task's life.

It knows what was asked and what was answered, and judges each answer by that alone. The rules'
numbers are those of the design: I1 nothing is lost, I2 nothing is made up, I3 epochs count up
under one lease at a time, I4 only the current epoch is heard, I5 one end, I6 which never
changes, I7 not before its eta, I8 attempts and crashes count what they say, I9 order, I12 what
is cancelled does not start, I13 one holder a key, I14 results stay, I15 one run after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

from sitq.administration import QueuePause
from sitq.ids import TaskId
from sitq.models import (
    ALL_QUEUES,
    Lease,
    LeaseState,
    Outcome,
    OutcomeKind,
    Progress,
    Reservation,
    Result,
    Task,
    TaskInfo,
)
from sitq.protocols import Sweep
from sitq.states import TaskStatus
from tests.properties.lives import BrokenRuleError, Life, demand, present

__all__ = ["BrokenRuleError", "Call", "History"]

Infos = Sequence[TaskInfo | None]
Results = Mapping[TaskId[Any], Result[Any] | None]

_RULE_OF_FIELD = {
    "status": "I5",
    "attempts": "I8",
    "crashes": "I8",
    "eta": "I7",
    "cancel_requested": "I12",
    "unique_key": "I13",
}


class Call(NamedTuple):
    """One call of a store's operation (or of a keeper's ``renew``), as data."""

    name: str
    arguments: tuple[Any, ...]


class History:
    """All that was done to one store."""

    def __init__(self) -> None:
        self.lives: dict[TaskId[Any], Life] = {}
        self.leases: list[Lease] = []
        self._stored = 0
        self._held: Collection[TaskId[Any]] = ()
        self._pauses: dict[str, QueuePause] = {}

    def copy(self, held: Collection[TaskId[Any]] = ()) -> Self:
        """A history that goes its own way from here.

        Args:
            held: tasks that its sweeps pass over.
        """
        twin = type(self)()
        twin._held = held
        twin.lives = {task_id: replace(life) for task_id, life in self.lives.items()}
        twin.leases = list(self.leases)
        twin._stored = self._stored
        twin._pauses = dict(self._pauses)
        return twin

    def judge(self, call: Call, answer: Any, now: datetime) -> None:
        """Hold an answer to the rules, and note what it means.

        Raises:
            BrokenRuleError: the answer breaks one.
        """
        getattr(self, f"_{call.name}")(answer, now, *call.arguments)

    def inspect(self, task_ids: Sequence[TaskId[Any]], infos: Infos, results: Results) -> None:
        """Hold what the store tells of tasks to what was done to them."""
        known = {task_id for task_id in task_ids if task_id in self.lives}
        for task_id, info in zip(task_ids, infos, strict=True):
            if info is None or task_id not in known:
                demand(info is None, "I2", task_id, "is unknown, but told of:", info)
                demand(task_id not in known, "I1", task_id, "is gone")
                continue
            self._inspect(self.lives[task_id], info)
        demand(set(results) == known, "I14", "results of", set(results), "not of", known)
        for task_id in known:
            end = self.lives[task_id].end
            demand(results[task_id] == end, "I6", "is", results[task_id], "was", end)

    def _inspect(self, life: Life, info: TaskInfo) -> None:
        expected = life.as_info()
        for name in type(info).model_fields:
            found, was = getattr(info, name), getattr(expected, name)
            rule = "I6" if life.end is not None else _RULE_OF_FIELD.get(name, "I1")
            demand(found == was, rule, name, "of", info.task_id, "is", found, "not", was)

    # -- one operation each; the first argument is what the store answered --------------------

    def _enqueue(self, answer: Any, now: datetime, tasks: Sequence[Task]) -> None:
        stored = self._store(tasks, now)
        if isinstance(stored, str):
            demand(answer == "BackendError", "I2", stored, "was stored twice:", answer)
        else:
            demand(answer == stored, "I13", "enqueue gave", answer, "not", stored)

    def _store(self, tasks: Sequence[Task], now: datetime) -> list[TaskId[Any]] | str:
        """Note tasks as stored; return what the store returns, or the id that is in use."""
        # Copies, since an id that is in use leaves all as it was.
        made: dict[TaskId[Any], Life] = {}
        expected: list[TaskId[Any]] = []
        number = self._stored
        for task in tasks:
            holder = self._holder(task.unique_key, made)
            if holder is not None and holder.task.id != task.id and _yields_left(holder, now):
                made[holder.task.id] = replace(holder)
                _give_way(made[holder.task.id], now)
            elif holder is not None:
                expected.append(holder.task.id)
                continue
            if task.id in self.lives or task.id in made:
                return str(task.id)
            number += 1
            made[task.id] = Life(task, number, now, task.eta or now)
            expected.append(task.id)
        self.lives |= made
        self._stored = number
        return expected

    def _holder(self, key: str | None, made: Mapping[TaskId[Any], Life]) -> Life | None:
        if key is None:
            return None
        holders = [life for life in {**self.lives, **made}.values() if life.holds(key)]
        demand(len(holders) <= 1, "I13", "a key has", holders)
        return holders[0] if holders else None

    def _reserve(
        self,
        answer: Reservation,
        now: datetime,
        worker: str,
        queues: Sequence[str],
        limit: int,
        lease: float,
    ) -> None:
        waiting = [
            life
            for life in self.lives.values()
            if (tuple(queues) == ALL_QUEUES or life.task.queue in queues)
            and life.status is TaskStatus.PENDING
            and not life.expired(now)
        ]
        starts = [(self._may_be_taken(life, now), life) for life in waiting]
        due = sorted((life for start, life in starts if start <= now), key=lambda life: life.order)
        for task in answer.tasks:
            demand(task.id in self.lives, "I2", "nobody enqueued", task)
            life = self.lives[task.id]
            self._may_start(life, now)
            life.start(worker, now, now + timedelta(seconds=lease))
            demand(task.epoch == life.starts, "I3", "epoch", task.epoch, "not", life.starts)
            demand(life.attempts <= life.most_attempts, "I8", "attempt", life.attempts)
            counted = (task.attempt, task.crashes, task.unknown_function_count)
            demand(
                counted == (life.attempts, life.crashes, life.unknown_function_count), "I8", task
            )
            expected = life.as_reserved()
            demand(task == expected, "I1", task, "not", expected)
            self.leases.append(task.lease)
        first = [life.task.id for life in due[:limit]]
        demand([task.id for task in answer.tasks] == first, "I9", answer.tasks, "not", first)
        later = [start - now for start, _ in starts if now < start < NEVER]
        wait = min(later) / timedelta(seconds=1) if later else None
        wait = 0.0 if len(due) > limit else wait
        demand(answer.wait == wait, "I9", "wait", answer.wait, "not", wait)

    def paused(self, now: datetime) -> dict[str, QueuePause]:
        """The pauses that have not ended, by queue."""
        return {
            queue: pause
            for queue, pause in self._pauses.items()
            if pause.until is None or pause.until > now
        }

    def _may_be_taken(self, life: Life, now: datetime) -> datetime:
        """From when on a task may be handed over."""
        pause = self.paused(now).get(life.task.queue)
        return life.eta if pause is None else max(life.eta, pause.until or NEVER)

    def _may_start(self, life: Life, now: datetime) -> None:
        name = life.task.id
        paused = self.paused(now)
        demand(life.task.queue not in paused, "pause", name, "started in a paused queue")
        cancelled = life.cancel_asked or life.status is TaskStatus.CANCELLED
        demand(not cancelled, "I12", name, "started after its cancellation")
        demand(life.end is None, "I6", name, "started after its end")
        demand(life.lease_end is None, "I15", name, "started under somebody's lease")
        demand(life.eta <= now, "I7", name, "started before its eta", life.eta)
        demand(not life.expired(now), "I7", name, "started after it expired")

    def _current(self, lease: Lease) -> Life | None:
        life = self.lives.get(lease.task_id)
        if life is None or life.lease_end is None or life.starts != lease.epoch:
            return None
        return life

    def _finish(self, answer: list[bool], now: datetime, outcomes: Sequence[Outcome]) -> None:
        demand(len(answer) == len(outcomes), "I4", "an outcome has no answer")
        for accepted, outcome in zip(answer, outcomes, strict=True):
            life = self._current(outcome.lease)
            demand(accepted is (life is not None), "I4", outcome, accepted)
            if life is not None:
                _END[self._kind(life, outcome)](life, outcome, now)

    def _kind(self, life: Life, outcome: Outcome) -> OutcomeKind:
        if outcome.kind is OutcomeKind.RETRY and life.attempts >= life.most_attempts:
            return OutcomeKind.FAILURE
        again = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}
        if life.cancel_asked and outcome.kind in again:
            return OutcomeKind.CANCELLED
        return outcome.kind

    def _renew(
        self, answer: list[LeaseState], now: datetime, leases: Sequence[Lease], seconds: float
    ) -> None:
        expected = []
        for lease in leases:
            life = self._current(lease)
            if life is None:
                expected.append(LeaseState.LOST)
                continue
            life.lease_end = now + timedelta(seconds=seconds)
            expected.append(LeaseState.CANCEL_REQUESTED if life.cancel_asked else LeaseState.HELD)
        demand(answer == expected, "I4", "renew gave", answer, "not", expected)

    def _set_progress(self, answer: bool, _now: datetime, lease: Lease, progress: Progress) -> None:
        life = self._current(lease)
        demand(answer is (life is not None), "I4", "set_progress of", lease, answer)
        if life is not None:
            life.progress = progress

    def _cancel(self, answer: Any, now: datetime, task_id: TaskId[Any]) -> None:
        life = self.lives.get(task_id)
        if life is None:
            demand(answer == "TaskNotFoundError", "I2", "cancelled the unknown", task_id)
            return
        demand(answer is (life.end is None), "I12", "cancel of", life.status, answer)
        if life.status is TaskStatus.PENDING:
            life.end_as(TaskStatus.CANCELLED, now)
        elif life.status is TaskStatus.IN_PROGRESS:
            life.cancel_asked = True

    def _sweep(self, answer: Sweep, now: datetime, max_crashes: int, limit: int) -> None:
        lost = self._oldest(lambda life: life.lease_end, now, limit)
        for life in lost:
            _reclaim(life, max_crashes, now)
        expired = self._oldest(
            lambda life: life.task.expires_at if life.status is TaskStatus.PENDING else None,
            now,
            limit,
        )
        for life in expired:
            life.end_as(TaskStatus.EXPIRED, now)
        over = self._oldest(
            lambda life: (
                life.finished_at + _seconds(life.task.result_ttl) if life.finished_at else None
            ),
            now,
            limit,
        )
        self._forget(over)
        expected = Sweep(len(lost), len(expired), len(over))
        demand(answer == expected, "I1", answer, "not", expected)

    def _prune(self, answer: int, now: datetime, older_than: float, limit: int) -> None:
        old = self._oldest(lambda life: life.finished_at, now - _seconds(older_than), limit)
        self._forget(old)
        demand(answer == len(old), "I14", "pruned", answer, "not", len(old))

    def _oldest(
        self, moment: Callable[[Life], datetime | None], now: datetime, limit: int
    ) -> list[Life]:
        found = [
            (when, life.number, life)
            for life in self.lives.values()
            if (when := moment(life)) is not None and when <= now
            if life.task.id not in self._held
        ]
        return [life for _, _, life in sorted(found, key=lambda entry: entry[:2])[:limit]]

    def _forget(self, lives: list[Life]) -> None:
        for life in lives:
            del self.lives[life.task.id]

    def _load_task(self, answer: Any, _now: datetime, task_id: TaskId[Any]) -> None:
        life = self.lives.get(task_id)
        if life is None:
            demand(answer == "TaskNotFoundError", "I2", task_id, "is unknown:", answer)
            return
        expected = life.task.model_copy(update={"eta": life.eta})
        demand(answer == expected, "I1", answer, "not", expected)


NEVER = datetime.max.replace(tzinfo=UTC)
# The tests must not take the errors' texts from the code under test.
LOST_ATTEMPT = "LeaseLostError: the worker died or hung before it reported"
LOST = "LeaseLostError: {} workers that ran this task died or hung before they reported"


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _yields_left(life: Life, now: datetime) -> bool:
    if life.lease_end is None:
        return life.expired(max(now, life.eta))
    return life.expired(now) and life.lease_end <= now


def _give_way(life: Life, now: datetime) -> None:
    if life.lease_end is None and life.expired(now):
        life.end_as(TaskStatus.EXPIRED, now)
    else:
        life.key_released = True


def _reclaim(life: Life, max_crashes: int, now: datetime) -> None:
    life.fail(now, LOST_ATTEMPT)
    life.end_lease(spent=False)
    life.crashes += 1
    if life.cancel_asked:
        life.end_as(TaskStatus.CANCELLED, now)
    elif life.crashes >= max_crashes:
        life.end_as(TaskStatus.FAILED, now, error=LOST.format(life.crashes))


def _succeed(life: Life, outcome: Outcome, now: datetime) -> None:
    life.end_as(TaskStatus.SUCCESS, now, value=present(outcome.value))


def _fail(life: Life, outcome: Outcome, now: datetime) -> None:
    life.fail(now, outcome.error, outcome.traceback)
    life.end_as(TaskStatus.FAILED, now, error=outcome.error, traceback=outcome.traceback)


def _cancelled(life: Life, _outcome: Outcome, now: datetime) -> None:
    life.end_as(TaskStatus.CANCELLED, now)


def _retry(life: Life, outcome: Outcome, now: datetime) -> None:
    life.fail(now, outcome.error, outcome.traceback)
    life.end_lease(spent=True)
    life.eta = now + _seconds(outcome.delay)
    life.error, life.traceback = outcome.error, outcome.traceback


def _release(life: Life, _outcome: Outcome, _now: datetime) -> None:
    life.end_lease(spent=False)


def _miss(life: Life, outcome: Outcome, now: datetime) -> None:
    life.end_lease(spent=False)
    life.unknown_function_count += 1
    life.eta = now + _seconds(outcome.delay)


_END: Mapping[OutcomeKind, Callable[[Life, Outcome, datetime], None]] = {
    OutcomeKind.SUCCESS: _succeed,
    OutcomeKind.FAILURE: _fail,
    OutcomeKind.CANCELLED: _cancelled,
    OutcomeKind.RETRY: _retry,
    OutcomeKind.RELEASE: _release,
    OutcomeKind.UNKNOWN_FUNCTION: _miss,
}
