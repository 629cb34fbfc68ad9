"""A history that also knows what was done to a store for its administration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

from sitq.administration import (
    BulkChange,
    BulkResult,
    Count,
    FailedAttempt,
    Overview,
    QueuePause,
    SkippedTask,
    TaskChange,
    TaskFilter,
    TaskPage,
    WorkerInfo,
    WorkerOrders,
    WorkerReport,
    WorkerState,
)
from sitq.ids import TaskId
from sitq.models import Task
from sitq.protocols import Sweep
from sitq.states import TaskStatus
from tests.properties.history import History
from tests.properties.lives import Life, demand

__all__ = ["AdminHistory"]

WORKER_TTL = timedelta(hours=1)
PENDING_STATUSES = {"pending", "scheduled", "due", "retrying"}
SAME = ("queue", "function", "priority", "worker", "unique_key", "retry_of")
MOMENTS = (("enqueued", "enqueued_at"), ("finished", "finished_at"), ("eta", "eta"))

Key = tuple[Any, ...]


class AdminHistory(History):
    """All that was done to one store, its administration included."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[str, tuple[WorkerReport, datetime]] = {}
        self._orders: dict[str, WorkerState] = {}
        # The place of the last row of the last page, and whether more come after it.
        self._place: Key = ()
        self.has_more = False

    def copy(self, held: Collection[TaskId[Any]] = ()) -> Self:
        twin = super().copy(held)
        twin._workers, twin._orders = dict(self._workers), dict(self._orders)
        twin._place, twin.has_more = self._place, self.has_more
        return twin

    # -- pauses ------------------------------------------------------------------------------

    def _pause_queue(self, _answer: None, now: datetime, pause: QueuePause) -> None:
        self._pauses[pause.queue] = pause.model_copy(update={"at": now})

    def _resume_queue(self, answer: bool, now: datetime, queue: str) -> None:
        demand(answer is (queue in self.paused(now)), "pause", "resume of", queue, answer)
        self._pauses.pop(queue, None)

    def _list_pauses(self, answer: list[QueuePause], now: datetime) -> None:
        paused = self.paused(now)
        expected = [paused[queue] for queue in sorted(paused)]
        demand(answer == expected, "pause", answer, "not", expected)

    # -- lists and bulk changes --------------------------------------------------------------

    def _page(
        self, now: datetime, where: TaskFilter, limit: int, *, is_first: bool
    ) -> tuple[list[Life], bool]:
        """The tasks of a page, and whether more come after it; remember its place."""
        order = _pending_key if where.status in PENDING_STATUSES else _id_key
        found = sorted(
            (life for life in self.lives.values() if _matches(life, where, now)), key=order
        )
        if not is_first:
            found = [life for life in found if order(life) > self._place]
        page, self.has_more = found[:limit], len(found) > limit
        self._place = order(page[-1]) if page else self._place
        return page, self.has_more

    def _list_tasks(
        self, answer: TaskPage, now: datetime, where: TaskFilter, limit: int, is_first: bool
    ) -> None:
        page, has_more = self._page(now, where, limit, is_first=is_first)
        expected = tuple(life.as_info() for life in page)
        demand(answer.items == expected, "list", answer.items, "not", expected)
        demand((answer.cursor is not None) is has_more, "list", "its cursor is", answer.cursor)

    def _count_tasks(
        self, answer: Count, now: datetime, where: TaskFilter, most: int, _seconds: float
    ) -> None:
        number = sum(_matches(life, where, now) for life in self.lives.values())
        expected = Count(min(number, most), number < most, now)
        demand(answer == expected, "count", answer, "not", expected)

    def _change_tasks(
        self,
        answer: BulkResult,
        now: datetime,
        change: TaskChange,
        where: TaskFilter,
        limit: int,
        is_first: bool,
        is_dry: bool,
    ) -> None:
        page, has_more = self._page(now, where, limit, is_first=is_first)
        seen = [life for life in page if not _is_changed(life, change)]
        accepted = [life for life in seen if _accepts(life, change)]
        for life in () if is_dry else accepted:
            self._change(life, change, now)
        skipped = [life.task.id for life in seen if life not in accepted]
        found = (answer.matched, answer.done, answer.cursor is not None)
        expected = (len(seen), len(accepted), has_more)
        demand(found == expected, "bulk", change, answer, "not", expected)
        ids = [each.task_id for each in answer.skipped if isinstance(each, SkippedTask)]
        demand(ids == skipped, "bulk", change, "skipped", ids, "not", skipped)

    def _change(self, life: Life, change: TaskChange, now: datetime) -> None:
        match change.kind:
            case BulkChange.DELETE:
                del self.lives[life.task.id]
            case BulkChange.CANCEL if life.status is TaskStatus.PENDING:
                life.end_as(TaskStatus.CANCELLED, now)
            case BulkChange.CANCEL:
                life.cancel_asked = True
            case BulkChange.POSTPONE:
                life.eta = change.eta or life.eta
            case BulkChange.SET_PRIORITY:
                life.task = life.task.model_copy(update={"priority": change.priority})

    # -- single tasks ------------------------------------------------------------------------

    def _retry_tasks(
        self,
        answer: list[TaskId[Any] | None],
        now: datetime,
        repeats: Sequence[Task],
        again: bool,
    ) -> None:
        expected = [self._repeat(task, now, again=again) for task in repeats]
        demand(answer == expected, "retry", answer, "not", expected)

    def _repeat(self, task: Task, now: datetime, *, again: bool) -> TaskId[Any] | None:
        old = self.lives.get(task.retry_of) if task.retry_of else None
        if old is None or old.end is None or (old.retried_as is not None and not again):
            return None
        stored = self._store([task], now)
        assert not isinstance(stored, str)
        old.retried_as = stored[0]
        return old.retried_as

    def _replace_task(self, answer: bool, now: datetime, task: Task) -> None:
        life = self.lives.get(task.id)
        is_pending = life is not None and life.status is TaskStatus.PENDING
        demand(answer is is_pending, "replace", task.id, answer)
        if life is not None and is_pending:
            life.task = life.task.model_copy(update={"payload": task.payload})
            life.eta = task.eta or now

    def _load_tasks(
        self, answer: list[Task | None], _now: datetime, task_ids: Sequence[TaskId[Any]]
    ) -> None:
        found = [self.lives.get(task_id) for task_id in task_ids]
        expected = [life and life.task.model_copy(update={"eta": life.eta}) for life in found]
        demand(answer == expected, "I1", answer, "not", expected)

    def _get_attempts(self, answer: Any, _now: datetime, task_id: TaskId[Any]) -> None:
        life = self.lives.get(task_id)
        expected: str | list[FailedAttempt] = "TaskNotFoundError"
        if life is not None:
            expected = list(life.failures)
        demand(answer == expected, "attempts", task_id, answer, "not", expected)

    # -- workers -----------------------------------------------------------------------------

    def _report(self, answer: WorkerOrders, now: datetime, report: WorkerReport) -> None:
        self._workers[report.id] = (report, now)
        state = self._orders.get(report.id, WorkerState.ACTIVE)
        expected = WorkerOrders(state, frozenset(self.paused(now)))
        demand(answer == expected, "workers", report.id, "was told", answer, "not", expected)

    def _deregister(self, _answer: None, _now: datetime, worker_id: str) -> None:
        self._workers.pop(worker_id, None)
        self._orders.pop(worker_id, None)

    def _order_worker(
        self, answer: bool, _now: datetime, worker_id: str, state: WorkerState
    ) -> None:
        demand(answer is (worker_id in self._workers), "workers", "order to", worker_id, answer)
        if answer:
            self._orders[worker_id] = state

    def _list_workers(self, answer: list[WorkerInfo], now: datetime) -> None:
        expected = [self._as_info(*self._workers[name], now) for name in sorted(self._workers)]
        demand(answer == expected, "workers", answer, "not", expected)

    def _as_info(self, report: WorkerReport, seen_at: datetime, now: datetime) -> WorkerInfo:
        is_lost = abs(now - seen_at) > timedelta(seconds=1.5 * report.lease)
        fields = dict(report) | {"state": WorkerState.LOST} if is_lost else dict(report)
        tasks = sorted(life.task.id for life in self.lives.values() if life.worker == report.id)
        return WorkerInfo(**fields, seen_at=seen_at, tasks=tuple(tasks))

    def _overview(self, answer: Overview, now: datetime) -> None:
        """Stores have to agree on it; here it is held to what the counts say."""
        for status, count in answer.totals.items():
            self._count_tasks(count, now, TaskFilter.model_validate({"status": status}), 10_001, 0)
        demand(
            [each.pause for each in answer.queues if each.pause]
            == [pause for _, pause in sorted(self.paused(now).items())],
            "pause",
            answer.queues,
        )
        self._list_workers(list(answer.workers), now)

    def _sweep(self, answer: Sweep, now: datetime, max_crashes: int, limit: int) -> None:
        super()._sweep(answer, now, max_crashes, limit)
        for name, (_, seen_at) in list(self._workers.items()):
            if now - seen_at > WORKER_TTL:
                self._deregister(None, now, name)


def _id_key(life: Life) -> Key:
    """Newer ids first."""
    return tuple(-ord(letter) for letter in life.task.id)


def _pending_key(life: Life) -> Key:
    return (life.task.queue, *life.order)


def _is_changed(life: Life, change: TaskChange) -> bool:
    is_same = {
        BulkChange.POSTPONE: life.eta == change.eta,
        BulkChange.SET_PRIORITY: life.task.priority == change.priority,
    }
    return life.status is TaskStatus.PENDING and is_same.get(change.kind, False)


def _accepts(life: Life, change: TaskChange) -> bool:
    match change.kind:
        case BulkChange.CANCEL:
            return life.end is None
        case BulkChange.DELETE:
            return life.status is not TaskStatus.IN_PROGRESS
        case BulkChange.POSTPONE:
            is_later = change.eta is not None and change.eta > life.eta
            return life.status is TaskStatus.PENDING and is_later
        case BulkChange.SET_PRIORITY:
            return life.status is TaskStatus.PENDING


STATUSES: dict[str, Callable[[Life, datetime], bool]] = {
    "scheduled": lambda life, now: life.eta > now,
    "due": lambda life, now: life.eta <= now,
    "retrying": lambda life, _: life.attempts > 0,
}


def _matches(life: Life, where: TaskFilter, now: datetime) -> bool:
    info = life.as_info()
    for name in SAME:
        if getattr(where, name) not in {None, getattr(info, name)}:
            return False
    for name, field in MOMENTS:
        after, before = getattr(where, f"{name}_after"), getattr(where, f"{name}_before")
        moment = getattr(info, field)
        if (after and not (moment and moment >= after)) or (
            before and not (moment and moment < before)
        ):
            return False
    if where.error is not None and (info.error or "").partition(":")[0] != where.error:
        return False
    if where.ids is not None and info.task_id not in where.ids:
        return False
    if where.status in STATUSES:
        return life.status is TaskStatus.PENDING and STATUSES[where.status](life, now)
    return where.status in {None, str(life.status)}
