"""The events of a worker: what it tells its extensions, and when."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from sitq import (
    BackendBusyError,
    Extension,
    RetryPolicy,
    SQLiteBackend,
    TaskQueue,
    Worker,
    current_task,
)
from sitq.backends.memory import MemoryBackend
from sitq.errors import BackendError
from sitq.extensions import (
    AttemptEnded,
    AttemptStarted,
    Event,
    LeaseLost,
    StoreTrouble,
    TasksReclaimed,
    WorkerStarted,
    WorkerStopped,
)
from sitq.models import OutcomeKind
from sitq.testing import FakeClock, FaultyBackend
from tests.worker.gate import GATE, add, bounded, endless, fail, multiply, until

pytestmark = pytest.mark.anyio

E = TypeVar("E")
BUSY = BackendBusyError("locked")


class Heard(Extension):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[int] = set()

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyBackend:
    memory = request.param == "memory"
    return FaultyBackend(MemoryBackend() if memory else SQLiteBackend(tmp_path / "q.db"))


@pytest.mark.parametrize("function", [add, multiply])
async def test_an_attempt_starts_and_ends_between_the_start_and_the_end_of_its_worker(
    backend: FaultyBackend, function: Any
) -> None:
    heard = Heard()
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(queue="mail").enqueue(function, 3, 4)
        worker = Worker(backend, queues=["mail"], max_concurrency=3, extensions=[heard])
        assert await worker.drain() == 1
    begun, started, ended, stopped = heard.events
    assert isinstance(begun, WorkerStarted)
    assert (begun.queues, begun.max_concurrency) == (("mail",), 3)
    assert isinstance(started, AttemptStarted)
    assert isinstance(ended, AttemptEnded)
    same = {"task_id", "function", "queue", "attempt", "epoch", "worker_id", "wait"}
    assert started.model_dump() == ended.model_dump(include=same)
    assert (started.task_id, started.queue, started.attempt, started.epoch) == (
        *(task_id, "mail"),
        *(1, 1),
    )
    assert started.function == f"tests.worker.gate:{function.__name__}"
    assert (ended.outcome, ended.accepted, ended.error) == (OutcomeKind.SUCCESS, True, None)
    assert 0 <= ended.duration < 20
    assert 0 <= ended.wait < 20
    assert stopped == WorkerStopped(worker_id=begun.worker_id, attempts=1, error=None)
    assert heard.threads == {threading.get_ident()}


async def test_the_wait_counts_from_the_eta_by_the_stores_clock() -> None:
    clock, heard = FakeClock(), Heard()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue:
        await queue.options(eta=clock.now() + timedelta(seconds=60)).enqueue(add, 1, 2)
        clock.advance(75)
        await Worker(backend, extensions=[heard]).drain()
    assert heard.of(AttemptStarted)[0].wait == 15.0


async def test_each_outcome_is_told_with_the_type_of_its_error(backend: FaultyBackend) -> None:
    heard = Heard()
    policy = RetryPolicy(max_attempts=2, delay=0.0, jitter=0.0)
    async with TaskQueue(backend) as queue:
        await queue.options(retry=policy).enqueue(fail, "secret")
        worker = Worker(backend, extensions=[heard])
        await worker.drain()
        await worker.drain()
    outcomes = [(event.outcome, event.attempt, event.error) for event in heard.of(AttemptEnded)]
    assert outcomes == [
        (OutcomeKind.RETRY, 1, "ValueError"),
        (OutcomeKind.FAILURE, 2, "ValueError"),
    ]
    assert "secret" not in repr(heard.events)


async def test_an_end_is_told_once_the_store_has_accepted_it(backend: FaultyBackend) -> None:
    heard = Heard()
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, extensions=[heard])
        await group.start(worker.start)
        backend.fail("finish", times=1_000_000, error=BUSY)
        task_id = await queue.enqueue(add, 1, 2)
        await until(lambda: len(heard.of(StoreTrouble)) >= 2)
        assert not heard.of(AttemptEnded)
        backend.heal()
        assert await queue.result(task_id, timeout=20) == 3
        await until(lambda: heard.of(AttemptEnded))
        await worker.stop()
    first, second = heard.of(StoreTrouble)[:2]
    assert (first.activity, first.failures, first.error) == (
        "store outcomes",
        1,
        "BackendBusyError",
    )
    assert second.failures == 2
    assert heard.of(AttemptEnded)[0].accepted


async def test_every_operation_of_the_store_that_fails_is_told(backend: FaultyBackend) -> None:
    heard = Heard()
    activities = {"reserve": "reserve tasks", "sweep": "sweep the store", "renew": "renew leases"}
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=1.0, poll_interval=0.05, extensions=[heard])
        await group.start(worker.start)
        await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        for operation in activities:
            backend.fail(operation, error=BUSY)
        wanted = set(activities.values())
        await until(lambda: wanted <= {event.activity for event in heard.of(StoreTrouble)})
        GATE.opened.set()
        await worker.stop()
    assert heard.threads == {threading.get_ident()}


async def test_what_is_handed_back_at_the_end_is_told_as_a_release(backend: FaultyBackend) -> None:
    heard = Heard()
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, shutdown_timeout=0.0, extensions=[heard])
        await group.start(worker.start)
        await queue.enqueue(endless)
        await until(GATE.entered.is_set)
        await worker.stop()
    (ended,) = heard.of(AttemptEnded)
    assert (ended.outcome, ended.accepted) == (OutcomeKind.RELEASE, True)
    assert isinstance(heard.events[-1], WorkerStopped)


async def test_a_lease_that_was_taken_over_is_told_and_its_attempt_has_no_outcome() -> None:
    heard, backend = Heard(), MemoryBackend()
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=0.3, extensions=[heard])
        await group.start(worker.start)
        task_id = await queue.enqueue(endless)
        await until(GATE.entered.is_set)
        row = backend._rows.by_id[task_id]
        backend._rows.by_id[task_id] = type(row)(**{**vars(row), "epoch": row.epoch + 1})
        await until(lambda: heard.of(AttemptEnded))
        await worker.stop()
    (lost,) = heard.of(LeaseLost)
    (ended,) = heard.of(AttemptEnded)
    assert (lost.task_id, lost.epoch, lost.is_overdue) == (task_id, 1, False)
    assert (ended.outcome, ended.accepted) == (None, False)


async def test_an_outcome_that_the_store_refuses_is_told_as_such() -> None:
    heard, backend = Heard(), MemoryBackend()
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=3600.0, extensions=[heard])
        await group.start(worker.start)
        task_id = await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        row = backend._rows.by_id[task_id]
        backend._rows.by_id[task_id] = type(row)(**{**vars(row), "epoch": row.epoch + 1})
        GATE.opened.set()
        await until(lambda: heard.of(AttemptEnded))
        await worker.stop()
    assert [event.is_overdue for event in heard.of(LeaseLost)] == [False]
    (ended,) = heard.of(AttemptEnded)
    assert (ended.outcome, ended.accepted) == (OutcomeKind.SUCCESS, False)


async def test_a_lease_that_could_not_be_renewed_in_time_is_told_once() -> None:
    heard, clock = Heard(), FakeClock()
    backend = FaultyBackend(MemoryBackend(clock=clock))
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(
            backend, lease=30.0, shutdown_timeout=0.0, cancel_grace=0.0, extensions=[heard]
        )
        await group.start(worker.start)
        backend.fail("renew", times=1000, error=BUSY)
        await queue.enqueue(endless)
        await until(GATE.entered.is_set)
        for _ in range(7):
            clock.advance(4.0)
            await anyio.wait_all_tasks_blocked()
        await until(lambda: heard.of(AttemptEnded))
        await worker.stop()
    assert [event.is_overdue for event in heard.of(LeaseLost)] == [True]
    ended = heard.of(AttemptEnded)[0]  # then it starts again
    assert (ended.outcome, ended.accepted) == (OutcomeKind.RELEASE, True)


async def test_reclaimed_tasks_are_told_by_the_worker_that_took_them_back() -> None:
    clock, heard = FakeClock(), Heard()
    backend = MemoryBackend(clock=clock)
    async with TaskQueue(backend) as queue:
        await queue.enqueue(add, 1, 2)
        await backend.reserve("dead", ("default",), 1, 30.0)
        clock.advance(31)
        await Worker(backend, extensions=[heard]).drain()
    assert [event.count for event in heard.of(TasksReclaimed)] == [1]


async def pay(path: str, commits: bool) -> int:
    with closing(sqlite3.connect(path)) as connection:
        current_task().complete_in_sync(connection, 7)
        if commits:
            connection.commit()
    return -1


@pytest.mark.parametrize("commits", [True, False])
async def test_a_task_that_completes_itself_ends_as_its_transaction_does(
    queue: TaskQueue, tmp_path: Path, commits: bool
) -> None:
    heard, path = Heard(), tmp_path / "q.db"
    await queue.enqueue(pay, str(path), commits)
    await Worker(SQLiteBackend(path), extensions=[heard]).drain()
    (ended,) = heard.of(AttemptEnded)
    kind = OutcomeKind.SUCCESS if commits else OutcomeKind.FAILURE
    assert (ended.outcome, ended.accepted) == (kind, True)
    assert not heard.of(LeaseLost)


async def test_a_worker_that_fails_to_start_tells_nothing(backend: FaultyBackend) -> None:
    heard = Heard()
    backend.fail("open", error=BUSY)
    with pytest.raises(BackendBusyError):
        await Worker(backend, extensions=[heard]).drain()
    assert not heard.events


async def test_the_end_of_a_worker_names_the_error_that_ended_it(backend: FaultyBackend) -> None:
    heard = Heard()
    async with TaskQueue(backend):
        backend.fail("reserve", error=BUSY)
        with pytest.raises(BackendError):
            await Worker(backend, extensions=[heard]).drain()
    (stopped,) = heard.of(WorkerStopped)
    assert (stopped.attempts, stopped.error) == (0, "BackendBusyError")


async def test_an_extension_that_fails_on_events_ends_no_worker(
    backend: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Extension):
        def on_event(self, event: Event) -> None:
            raise KeyboardInterrupt

    async with TaskQueue(backend) as queue:
        ids = [await queue.enqueue(add, 1, number) for number in range(3)]
        await Worker(backend, extensions=[Broken()]).drain()
        assert [await queue.result(each, timeout=0) for each in ids] == [1, 2, 3]
    told = [each.getMessage() for each in caplog.records if "on_event" in each.getMessage()]
    assert len(told) == 4  # the types of the events


async def test_a_worker_without_listeners_makes_no_events(
    backend: FaultyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(Extension):
        """Overrides nothing."""

    monkeypatch.setattr("sitq._hooks.Hooks.emit", None)
    async with TaskQueue(backend, extensions=[Idle()]) as queue:
        await queue.enqueue(add, 1, 2)
        assert await Worker(backend, extensions=[Idle()]).drain() == 1
