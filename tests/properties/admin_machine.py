"""The state machine with the operations of administration among its rules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from sitq.administration import (
    BulkChange,
    QueuePause,
    TaskChange,
    TaskFilter,
    WorkerReport,
    WorkerState,
)
from sitq.models import Outcome
from tests.properties.administration import AdminHistory
from tests.properties.history import Call
from tests.properties.machine import EVERYTHING, QUEUES, StoreMachine, _back, _options, _which

__all__ = ["AdminMachine"]

_statuses = st.sampled_from([
    None, None, "pending", "pending", "due", "scheduled", "retrying", "in_progress", "failed",
    "success", "cancelled", "expired",
])  # fmt: skip
# One more field of a filter: moments are given as seconds from now, ids as every n-th.
_narrowing = st.sampled_from([
    None, None, None, None, ("queue", "a"), ("queue", "b"), ("priority", 0), ("priority", 100),
    ("error", "ValueError"), ("error", "OSError"), ("error", "LeaseLostError"), ("ids", 2),
    ("eta_before", 0.0), ("eta_after", 0.0), ("finished_before", 0.0), ("finished_after", -1.0),
    ("enqueued_before", 0.0), ("enqueued_after", -1.0), ("worker", "worker"), ("unique_key", "one"),
])  # fmt: skip
_where = st.tuples(_statuses, _narrowing)
_limits = st.sampled_from([1, 2, 3, EVERYTHING])
_changes = st.sampled_from([*BulkChange])
_workers = st.sampled_from(["worker", "other"])
# What happens between two pages: a task is stored, removed, changed; time goes by.
_between = st.lists(st.sampled_from("eeadtn"), min_size=1, max_size=4)
_PAGES = 4


class AdminMachine(StoreMachine):
    """Steers the stores, too."""

    def __init__(self) -> None:
        super().__init__()
        self.history: AdminHistory = AdminHistory()

    def drain(self) -> None:
        for queue in QUEUES:
            self.do("resume_queue", queue)
        super().drain()

    def where(self, chosen: tuple[str | None, tuple[str, Any] | None]) -> TaskFilter:
        status, narrowing = chosen
        fields: dict[str, Any] = {} if status is None else {"status": status}
        if narrowing is not None:
            name, value = narrowing
            if name == "ids":
                value = tuple(self.task_ids[::value][-50:])
            elif name.endswith(("_before", "_after")):
                value = self.clock.now() + timedelta(seconds=value)
            fields[name] = value
        return TaskFilter(**fields)

    # -- pauses ------------------------------------------------------------------------------

    @rule(
        queue=st.sampled_from([*QUEUES, "unused"]),
        until=st.sampled_from([None, 1.0, 30.0, 3600.0, -1.0]),
    )
    def pause(self, queue: str, until: float | None) -> None:
        now = self.clock.now()
        end = None if until is None else now + timedelta(seconds=until)
        pause = QueuePause(queue=queue, reason="why", by="who", at=now, until=end)
        self.do("pause_queue", pause)
        self.do("list_pauses")
        self.do("reserve", "worker", QUEUES, 2, 30.0)

    @rule(queue=st.sampled_from([*QUEUES, "unused"]))
    def resume(self, queue: str) -> None:
        self.do("resume_queue", queue)
        self.do("list_pauses")

    # -- lists and bulk changes --------------------------------------------------------------

    @rule(chosen=_where, limit=_limits, between=_between)
    def page_through(self, chosen: Any, limit: int, between: list[str]) -> None:
        """List page by page, while tasks come and go."""
        where = self.where(chosen)
        self.do("count_tasks", where, limit, 60.0)
        self.do("list_tasks", where, limit, True)
        for step in between:
            if not self.history.has_more:
                return
            self._disturb(step)
            self.do("list_tasks", where, limit, False)

    def _disturb(self, step: str) -> None:
        place = len(self.task_ids)
        if step == "e":
            self.do("enqueue", [self.new_task({"priority": 100 - place % 3, "queue": "b"})])
        elif step == "a":
            self.clock.advance(1.0)
        elif step == "d":
            where = TaskFilter(ids=tuple(self.task_ids[place % 3 :: 3][-50:]))
            place_before, had_more = self.history._place, self.history.has_more
            self.do_aside("change_tasks", TaskChange(BulkChange.DELETE), where, 2, True, False)
            self.history._place, self.history.has_more = place_before, had_more
        elif step == "t":
            taken = self.newly_reserved(1, 30.0)
            self.do("finish", [Outcome.success(lease, b"") for lease in taken])

    def do_aside(self, name: str, *arguments: Any) -> None:
        """Do something that has pages, without leaving the list under way."""
        for store in self.stores:
            store.keep_cursor()
        self.do(name, *arguments)
        for store in self.stores:
            store.restore_cursor()

    @rule(
        kind=_changes,
        chosen=_where,
        limit=_limits,
        to=st.tuples(st.sampled_from([1.0, 30.0, -1.0]), st.sampled_from([-100, 0, 100])),
        is_dry=st.sampled_from([False, False, True]),
    )
    def change(
        self, kind: BulkChange, chosen: Any, limit: int, to: tuple[float, int], is_dry: bool
    ) -> None:
        eta = self.clock.now() + timedelta(seconds=to[0])
        change = TaskChange(
            kind,
            eta if kind is BulkChange.POSTPONE else None,
            to[1] if kind is BulkChange.SET_PRIORITY else None,
        )
        where = self.where(chosen)
        self.do("change_tasks", change, where, limit, True, is_dry)
        for _ in range(_PAGES):
            if not self.history.has_more:
                return
            self.do("change_tasks", change, where, limit, False, is_dry)

    # -- single tasks ------------------------------------------------------------------------

    @rule(
        options=st.lists(_options, min_size=1, max_size=3),
        back=_back,
        again=st.sampled_from([False, False, True]),
        is_twice=st.booleans(),
    )
    def retry(self, options: list[dict[str, Any]], back: int, again: bool, is_twice: bool) -> None:
        """Repeat tasks that are final, if there are any, twice perhaps in one call."""
        final = [life.task.id for life in self.history.lives.values() if life.end is not None]
        old = final or self.task_ids
        repeats = [
            self.new_task(each).model_copy(
                update={"retry_of": old[(back + number * (not is_twice)) % len(old)]}
            )
            for number, each in enumerate(options)
        ]
        self.do("retry_tasks", repeats, again)

    @rule(back=_back, eta=st.sampled_from([None, 1.0, -1.0, 3600.0]))
    def replace(self, back: int, eta: float | None) -> None:
        task_id = self.task_ids[-1 - back % len(self.task_ids)]
        when = None if eta is None else self.clock.now() + timedelta(seconds=eta)
        task = self.new_task({"payload": b"replaced"}).model_copy(
            update={"id": task_id, "eta": when}
        )
        self.do("replace_task", task)

    @rule(back=_back)
    def look_closely(self, back: int) -> None:
        task_id = self.task_ids[-1 - back % len(self.task_ids)]
        self.do("get_attempts", task_id)
        self.do("load_tasks", [task_id, self.task_ids[0], self.task_ids[-1]])

    @precondition(lambda self: self.history.leases)
    @rule(which=_which)
    def look_at_what_ran(self, which: tuple[bool, int]) -> None:
        self.do("get_attempts", self.lease(which).task_id)

    @precondition(lambda self: len(self.task_ids) > len(self.history.lives) + 1)
    @rule(back=_back)
    def enqueue_what_is_gone(self, back: int) -> None:
        """An id is free once its task is gone; nothing of the old task is left."""
        used = [lease.task_id for lease in self.history.leases]
        gone = [task_id for task_id in used if task_id not in self.history.lives]
        if gone:
            task_id = gone[-1 - back % len(gone)]
            self.do("enqueue", [self.new_task({}).model_copy(update={"id": task_id})])
            self.do("get_attempts", task_id)

    # -- workers -----------------------------------------------------------------------------

    @rule(
        name=_workers,
        state=st.sampled_from([WorkerState.ACTIVE, WorkerState.QUIET]),
        queues=st.sampled_from([("a", "b"), ("*",)]),
        lease=st.sampled_from([1.0, 30.0]),
    )
    def report(self, name: str, state: WorkerState, queues: tuple[str, ...], lease: float) -> None:
        report = WorkerReport(
            id=name,
            host="alpha",
            pid=1,
            version="1",
            queues=queues,
            functions=("module:other",),
            slots=10,
            running=1,
            state=state,
            lease=lease,
            started_at=self.clock.now(),
        )
        self.do("report", report)

    @rule(
        name=_workers,
        state=st.sampled_from([WorkerState.QUIET, WorkerState.STOPPING, WorkerState.ACTIVE]),
    )
    def order(self, name: str, state: WorkerState) -> None:
        self.do("order_worker", name, state)

    @rule(name=_workers)
    def deregister(self, name: str) -> None:
        self.do("deregister", name)

    @rule()
    def look_around(self) -> None:
        self.do("list_workers")
        self.do("overview")

    # -- at once -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.stores) == 1)
    @rule(names=st.sampled_from(["pr", "dr", "df", "ds", "prs", "dfr", "pdr"]))
    def administer_at_once(self, names: str) -> None:
        """A queue is paused, and tasks are deleted, while others reserve, finish and sweep."""
        self.do("enqueue", [self.new_task({"priority": 100})])
        mine = self.newly_reserved(1, 1.0)
        self.do("enqueue", [self.new_task({"priority": 100})])
        self.clock.advance(1.0)
        ids = (self.task_ids[-1], *(lease.task_id for lease in mine))
        delete = (TaskChange(BulkChange.DELETE), TaskFilter(ids=ids), EVERYTHING, True, False)
        pause = QueuePause(queue=QUEUES[0], at=self.clock.now())
        calls = {
            "p": Call("pause_queue", (pause,)),
            "d": Call("change_tasks", delete),
            "r": Call("reserve", ("racer", QUEUES, 3, 30.0)),
            "f": Call("finish", ([Outcome.failure(lease, "ValueError: no") for lease in mine],)),
            "s": Call("sweep", (3, EVERYTHING)),
        }
        self.race([calls[name] for name in names])
