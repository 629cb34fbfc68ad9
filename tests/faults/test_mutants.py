"""Stores that are broken on purpose: the state machine finds out each of them.

Each mutant is the reference store with one mistake of the kind that queues are shipped with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, Phase, settings

from sitq.backends.memory import MemoryBackend, _operations
from sitq.backends.memory._operations import Rows
from sitq.backends.memory._rows import TaskRow
from sitq.ids import TaskId
from sitq.models import Lease, Outcome, OutcomeKind, Reservation, ReservedTask, Task
from sitq.protocols import Clock, Sweep
from sitq.states import TaskStatus
from tests.properties.history import BrokenRuleError
from tests.properties.machine import search
from tests.properties.stores import Place, memory

pytestmark = pytest.mark.timeout(300)

SEARCH = settings(
    max_examples=2000,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the first find is enough
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


# -- operations that are wrong ---------------------------------------------------------------


class ReclaimInTwoSteps(MemoryBackend):
    """Tasks are selected, and taken back a moment later whatever happened meanwhile."""

    async def sweep(self, max_crashes: int, limit: int = 1000) -> Sweep:
        await anyio.lowlevel.checkpoint()
        now = self._clock.now()
        lost = self._rows.reached(limit, now, lambda row: row.lease_end)
        await anyio.lowlevel.checkpoint()
        for row in lost:
            self._rows.put(row.reclaimed(max_crashes, now))
        rest = await super().sweep(max_crashes, limit)
        return Sweep(len(lost), rest.expired, rest.pruned)


class ReserveInTwoSteps(MemoryBackend):
    """Due tasks are selected, and marked a moment later whoever has marked them meanwhile."""

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        await anyio.lowlevel.checkpoint()
        now = self._clock.now()
        due = [
            row
            for row in self._rows.by_id.values()
            if row.task.queue in queues
            and row.is_pending
            and row.is_due(now)
            and not row.is_expired(now)
        ]
        due.sort(key=lambda row: row.order)
        await anyio.lowlevel.checkpoint()
        end = now + timedelta(seconds=lease)
        rows = [self._rows.put(row.reserved(worker, now, end)) for row in due[:limit]]
        tasks = tuple(row.to(ReservedTask) for row in rows)
        return Reservation(tasks, (await super().reserve(worker, queues, 0, lease)).wait)


class CountAtFinish(MemoryBackend):
    """An attempt counts only once its outcome is there."""

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        reservation = await super().reserve(worker, queues, limit, lease)
        for task in reservation.tasks:
            row = self._rows.by_id[task.id]
            self._rows.put(replace(row, attempts=row.attempts - 1))
        return reservation

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        for outcome in outcomes:
            if (row := self._rows.current(outcome.lease)) is not None:
                self._rows.put(replace(row, attempts=row.attempts + 1))
        return await super().finish(outcomes)


class CheckKeysBefore(MemoryBackend):
    """Unique keys are looked up before the insert, so a call's own tasks do not see each other."""

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        await anyio.lowlevel.checkpoint()
        holders = {
            row.task.unique_key: row.task.id
            for row in self._rows.by_id.values()
            if row.task.unique_key and row.holds(row.task.unique_key)
        }
        ids = []
        for task in tasks:
            holder = holders.get(task.unique_key or "")
            if holder is None:
                keyless = task.model_copy(update={"unique_key": None})
                (holder,) = _operations.enqueue(self._rows, self._clock.now(), [keyless])
                self._rows.put(replace(self._rows.by_id[holder], task=task))
            ids.append(holder)
        return ids


class TakeKeysBack(MemoryBackend):
    """A task that is put back has its unique key once more."""

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        accepted = await super().finish(outcomes)
        for outcome in outcomes:
            row = self._rows.by_id.get(outcome.task_id)
            if row is not None and row.status is TaskStatus.PENDING:
                held = row.task.model_copy(update={"unique_until": "end"})
                self._rows.put(replace(row, task=held))
        return accepted


class ForgetCancelOfRunning(MemoryBackend):
    """A cancellation reaches waiting tasks only."""

    async def cancel(self, task_id: TaskId[Any]) -> bool:
        asked = await super().cancel(task_id)
        self._rows.put(replace(self._rows.by_id[task_id], cancel_requested=False))
        return asked


class RenewWhatIsOver(MemoryBackend):
    """A renewal leaves a lease alone that is over, but says that it is held."""

    def renew(self, leases: Sequence[Lease], seconds: float) -> Any:
        before = {lease: self._rows.current(lease) for lease in leases}
        states = super().renew(leases, seconds)
        for row in before.values():
            if row is not None and row.lease_end and row.lease_end <= self._clock.now():
                self._rows.put(row)
        return states


# -- rules of a row that are wrong ------------------------------------------------------------

AFTER = TaskRow.after
RECLAIMED = TaskRow.reclaimed


def finish_by_id(rows: Rows, lease: Lease) -> TaskRow | None:
    """An outcome ends its task whatever the task's state and epoch."""
    return rows.by_id.get(lease.task_id)


def finish_by_status(rows: Rows, lease: Lease) -> TaskRow | None:
    """An outcome ends its task if that runs, whoever runs it."""
    row = rows.by_id.get(lease.task_id)
    return row if row and row.status is TaskStatus.IN_PROGRESS else None


def finish_by_epoch(rows: Rows, lease: Lease) -> TaskRow | None:
    """An outcome of the last epoch is accepted also after the lease has ended."""
    row = rows.by_id.get(lease.task_id)
    return row if row and row.epoch == lease.epoch else None


def never_give_way(row: TaskRow, now: datetime) -> bool:
    """A task past its expiry keeps its unique key until a sweep comes."""
    return False


def spend_at_release(row: TaskRow, outcome: Outcome, now: datetime) -> TaskRow:
    """A release keeps the attempt that it hands back."""
    next_row = AFTER(row, outcome, now)
    if outcome.kind is OutcomeKind.RELEASE and not next_row.status.is_final:
        return replace(next_row, attempts=row.attempts)
    return next_row


def lose_cancel_at_retry(row: TaskRow, outcome: Outcome, now: datetime) -> TaskRow:
    """A retry forgets that the task was to end."""
    if outcome.kind is OutcomeKind.RETRY:
        row = replace(row, cancel_requested=False)
    return AFTER(row, outcome, now)


def retry_for_ever(row: TaskRow, outcome: Outcome, now: datetime) -> TaskRow:
    """A retry does not ask how many attempts there may be."""
    if outcome.kind is OutcomeKind.RETRY and not row.cancel_requested:
        task = row.task
        endless = replace(row, task=task.model_copy(update={"retry": None}))
        return replace(AFTER(endless, outcome, now), task=task)
    return AFTER(row, outcome, now)


def forget_crash(row: TaskRow, max_crashes: int, now: datetime) -> TaskRow:
    """A lost lease is no crash, so a poison task goes on for ever."""
    next_row = RECLAIMED(row, max_crashes + 1, now)
    return next_row if next_row.status.is_final else replace(next_row, crashes=row.crashes)


def ignore_eta(row: TaskRow, now: datetime) -> bool:
    """What waits is due."""
    return True


def order_by_insertion(row: TaskRow) -> tuple[int, datetime, int]:
    """First in, first out, and nothing else."""
    return (0, datetime.min, row.number)


def order_without_eta(row: TaskRow) -> tuple[int, datetime, int]:
    """By priority, then first in, first out."""
    return (-row.task.priority, datetime.min, row.number)


def delete_early(row: TaskRow) -> datetime | None:
    """Retention counts from the enqueueing."""
    return row.finished_at and row.enqueued_at + timedelta(seconds=row.task.result_ttl)


WRONG_OPERATIONS: list[type[MemoryBackend]] = [
    ReclaimInTwoSteps,
    ReserveInTwoSteps,
    CountAtFinish,
    CheckKeysBefore,
    TakeKeysBack,
    ForgetCancelOfRunning,
    RenewWhatIsOver,
]
WRONG_ROWS: list[tuple[object, str, Callable[..., object]]] = [
    (Rows, "current", finish_by_id),
    (Rows, "current", finish_by_status),
    (Rows, "current", finish_by_epoch),
    (TaskRow, "can_never_start", never_give_way),
    (TaskRow, "after", spend_at_release),
    (TaskRow, "after", lose_cancel_at_retry),
    (TaskRow, "after", retry_for_ever),
    (TaskRow, "reclaimed", forget_crash),
    (TaskRow, "delete_at", delete_early),
    (TaskRow, "is_due", ignore_eta),
    (TaskRow, "order", order_by_insertion),
    (TaskRow, "order", order_without_eta),
]


def name_of(parameter: object) -> str:
    return getattr(parameter, "__name__", str(parameter)).rpartition(".")[2]


def test_the_search_finds_nothing_in_the_store_itself() -> None:
    search(settings(SEARCH, max_examples=250), memory)


@pytest.mark.parametrize("mutant", WRONG_OPERATIONS, ids=name_of)
def test_a_wrong_operation_is_found(mutant: type[MemoryBackend]) -> None:
    def make(clock: Clock, _folder: Path) -> Place:
        backend = mutant(clock=clock)
        return Place(lambda: backend)

    with pytest.raises(BrokenRuleError):
        search(SEARCH, make)


@pytest.mark.parametrize(("place", "name", "wrong"), WRONG_ROWS, ids=name_of)
def test_a_wrong_rule_of_a_row_is_found(
    place: object,
    name: str,
    wrong: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = place.__dict__[name]
    monkeypatch.setattr(place, name, property(wrong) if isinstance(right, property) else wrong)
    with pytest.raises(BrokenRuleError):
        search(SEARCH, memory)
