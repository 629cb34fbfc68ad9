"""A task that an open transaction of somebody's holds: nobody else has to wait for that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from sitq import RetryPolicy, TaskQueue, TaskStatus, Worker, current_task, task
from sitq.backends.postgres import PostgresBackend
from sitq.models import Lease, LeaseState, Outcome, Progress
from sitq.testing import FakeClock
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

LEASE = 30.0


class Held:
    """Two tasks that run; the success of one is recorded in a transaction that is open."""

    def __init__(self, backend: PostgresBackend, schema: str, leases: list[Lease]) -> None:
        self.backend = backend
        self.schema = schema
        self.lease, self.other = leases
        self.connection = psycopg.connect(dsn())

    async def begin(self) -> None:
        assert await self.backend.join(self.connection).complete(self.lease, b"value")

    async def end(self, how: str) -> None:
        await anyio.to_thread.run_sync(getattr(self.connection, how))

    async def status(self) -> TaskStatus:
        (info,) = await self.backend.get_tasks([self.lease.task_id])
        assert info is not None
        return info.status


@pytest.fixture
def schema() -> str:
    return new_schema()


@pytest.fixture
async def held(schema: str) -> AsyncIterator[Held]:
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    await backend.enqueue([new_task() for _ in range(2)])
    tasks = (await backend.reserve("w", ["default"], 2, LEASE)).tasks
    held = Held(backend, schema, [each.lease for each in tasks])
    with closing(held.connection):
        await held.begin()
        yield held
    await backend.close()


async def ask(sql: str) -> list[tuple[Any, ...]]:
    return await anyio.to_thread.run_sync(query, sql)


async def renew(held: Held, leases: list[Lease]) -> list[LeaseState]:
    def beat() -> list[LeaseState]:
        with closing(held.backend.lease_keeper()) as keeper:
            return keeper.renew(leases, 3600.0)

    return await anyio.to_thread.run_sync(beat)


async def ends(held: Held) -> dict[str, datetime]:
    """When the leases end, as all but the open transaction see it."""
    return dict(await ask(f"SELECT id, lease_end FROM {held.schema}.tasks"))


@pytest.mark.parametrize("how", ["commit", "rollback"])
async def test_the_others_leases_are_renewed_and_that_one_is_neither_held_nor_lost(
    held: Held, how: str
) -> None:
    before = await ends(held)
    with anyio.fail_after(4):  # it would be 5 seconds until a heartbeat is given up
        states = await renew(held, [held.lease, held.other])
    assert states == [LeaseState.UNKNOWN, LeaseState.HELD]
    after = await ends(held)
    assert after[held.lease.task_id] == before[held.lease.task_id]
    assert after[held.other.task_id] > before[held.other.task_id] + timedelta(minutes=30)
    await held.end(how)
    known = LeaseState.LOST if how == "commit" else LeaseState.HELD
    assert await renew(held, [held.lease, held.other]) == [known, LeaseState.HELD]


async def test_a_lease_that_is_not_current_is_lost_although_a_transaction_holds_the_task(
    held: Held,
) -> None:
    old = Lease(held.lease.task_id, held.lease.epoch - 1)
    states = await renew(held, [old, held.lease])
    assert states == [LeaseState.LOST, LeaseState.UNKNOWN]


Judge = Callable[[Held], Any]
WAITING: dict[str, tuple[Judge, tuple[bool, TaskStatus]]] = {
    # What is asked, and, once the transaction was rolled back, the answer and the task's status.
    "failure": (
        lambda held: _one(held.backend.finish([Outcome.failure(held.lease, "no")])),
        (True, TaskStatus.FAILED),
    ),
    "release": (
        lambda held: _one(held.backend.finish([Outcome.release(held.lease)])),
        (True, TaskStatus.PENDING),
    ),
    "cancel": (
        lambda held: held.backend.cancel(held.lease.task_id),
        (True, TaskStatus.IN_PROGRESS),
    ),
    "progress": (
        lambda held: held.backend.set_progress(held.lease, Progress(done=1)),
        (True, TaskStatus.IN_PROGRESS),
    ),
}


async def _one(answers: Any) -> bool:
    (answer,) = await answers
    return bool(answer)


@pytest.mark.parametrize("how", ["commit", "rollback"])
@pytest.mark.parametrize("what", WAITING)
async def test_what_is_asked_of_that_one_waits_and_holds_up_nothing_else(
    held: Held, what: str, how: str
) -> None:
    asking, after_rollback = WAITING[what]
    answers: list[bool] = []

    async def ask_it() -> None:
        answers.append(await asking(held))

    async with anyio.create_task_group() as group:
        group.start_soon(ask_it)
        with anyio.fail_after(10):
            await anyio.wait_all_tasks_blocked()
            # All of these go the same ways.
            assert await held.backend.set_progress(held.other, Progress(done=1))
            assert await held.backend.cancel(held.other.task_id)
            assert await held.backend.finish([Outcome.failure(held.other, "no")]) == [True]
            await held.backend.enqueue([new_task()])
            assert len((await held.backend.reserve("w", ["default"], 9, LEASE)).tasks) == 1
            await held.backend.sweep(3)
        assert answers == []
        assert await held.status() is TaskStatus.IN_PROGRESS
        await held.end(how)
    expected = after_rollback if how == "rollback" else (False, TaskStatus.SUCCESS)
    assert (answers[0], await held.status()) == expected


async def test_a_batch_with_that_one_is_judged_for_the_others_at_once(held: Held) -> None:
    """Each is told once: what was accepted at first is not judged again with the rest."""
    answers: list[list[bool]] = []
    batch = [Outcome.failure(held.lease, "no"), Outcome.failure(held.other, "no")]
    batch += [Outcome.failure(held.lease, "again"), Outcome.failure(held.other, "again")]

    async def finish() -> None:
        answers.append(await held.backend.finish(batch))

    async with anyio.create_task_group() as group:
        group.start_soon(finish)
        with anyio.fail_after(10):
            failed = f"SELECT id FROM {held.schema}.tasks WHERE status = 'failed'"
            while await ask(failed) != [(held.other.task_id,)]:
                pass
        await held.end("rollback")
    assert answers == [[True, True, False, False]]


async def test_it_is_not_reclaimed_while_the_transaction_is_open(
    held: Held,
) -> None:
    late = FakeClock(datetime.now(UTC) + timedelta(hours=1))
    other = PostgresBackend(dsn(), schema=held.schema, clock=late)
    await other.open()
    assert (await other.sweep(3)).reclaimed == 1  # the one that nobody holds
    await held.end("rollback")
    assert (await other.sweep(3)).reclaimed == 1
    await other.close()


async def test_who_wants_its_unique_key_waits_and_other_enqueues_do_not(schema: str) -> None:
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    holder = new_task(unique_key="one")
    await backend.enqueue([holder])
    (running,) = (await backend.reserve("w", ["default"], 1, LEASE)).tasks
    held = Held(backend, schema, [running.lease, running.lease])
    answers: list[str] = []

    async def want() -> None:
        answers.extend(await backend.enqueue([wanted]))

    wanted = new_task(unique_key="one")
    with closing(held.connection):
        await held.begin()
        async with anyio.create_task_group() as group:
            group.start_soon(want)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(10):
                await backend.enqueue([new_task()])
                await backend.enqueue([new_task(), new_task(priority=1)])
            assert answers == []
            await held.end("commit")
    assert answers == [wanted.id]
    await backend.close()


# -- a worker --------------------------------------------------------------------------------

SHORT = 1.5
STARTS: list[tuple[str, int, str]] = []
GATE: dict[str, threading.Event] = {}


def note(what: str) -> None:
    context = current_task()
    STARTS.append((what, context.lease.epoch, context.id))


@task
def pay(where: str, seconds: float) -> None:
    """Complete, and commit much later."""
    note("pay")
    with psycopg.connect(where) as connection:
        current_task().complete_in_sync(connection)
        time.sleep(seconds)  # with the transaction open


@task
def leave_open(where: str) -> None:
    """Complete, and end with the transaction open; somebody else will roll it back."""
    note("leave_open")
    connection = psycopg.connect(where)
    current_task().complete_in_sync(connection)
    OPEN.append(connection)


OPEN: list[psycopg.Connection[Any]] = []


@task
async def stay(seconds: float) -> None:
    """Run for some leases."""
    note("stay")
    await anyio.sleep(seconds)


@task(retry=RetryPolicy(max_attempts=3, delay=0.05, jitter=0))
async def fail_twice() -> None:
    """What does not succeed at once goes another way through the store."""
    note("fail_twice")
    if current_task().attempt < 3:
        raise ValueError("not yet")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    STARTS.clear()
    yield
    while OPEN:
        OPEN.pop().close()


def surprises(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that are not of the task that fails on purpose."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if fail_twice.__name__ not in text]


async def test_a_transaction_of_two_leases_costs_the_workers_other_tasks_nothing(
    schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats and outcomes go on beside it; the one that it completes has its success too."""
    async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
        worker = Worker(PostgresBackend(dsn(), schema=schema), lease=SHORT)
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            ids = [await queue.enqueue(pay, dsn(), 2 * SHORT)]
            ids += [await queue.enqueue(stay, 2.5 * SHORT) for _ in range(2)]
            ids += [await queue.enqueue(fail_twice) for _ in range(2)]
            with anyio.fail_after(20):
                results = [await queue.get_result(each) for each in ids]
            await worker.stop()
    assert [result and result.status for result in results] == [TaskStatus.SUCCESS] * 5
    assert {(what, epoch) for what, epoch, _ in STARTS} == {
        ("pay", 1), ("stay", 1), ("fail_twice", 1), ("fail_twice", 2), ("fail_twice", 3)
    }  # fmt: skip
    assert surprises(caplog) == []
    crashes = await ask(f"SELECT sum(crashes)::int FROM {schema}.tasks")
    assert crashes == [(0,)]


async def test_a_transaction_that_outlives_its_function_costs_the_others_nothing(
    schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What becomes of the task is known only at its end; until then the worker asks in vain."""
    async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
        worker = Worker(PostgresBackend(dsn(), schema=schema), lease=SHORT)
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            open_one = await queue.enqueue(leave_open, dsn())
            ids = [await queue.enqueue(stay, 2 * SHORT)]
            ids += [await queue.enqueue(fail_twice) for _ in range(2)]
            with anyio.fail_after(20):
                results = [await queue.get_result(each) for each in ids]
                assert (await queue.get_task(open_one)).status is TaskStatus.IN_PROGRESS
                await anyio.to_thread.run_sync(OPEN[0].commit)
                assert await queue.get_result(open_one) is not None
            await worker.stop()
    assert [result and result.status for result in results] == [TaskStatus.SUCCESS] * 3
    assert surprises(caplog) == []
    rows = await ask(f"SELECT DISTINCT status, crashes FROM {schema}.tasks")
    assert rows == [("success", 0)]


async def test_a_worker_stops_in_time_though_a_transaction_is_left_open(
    schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sitq.worker._worker_run._LAST_WRITES", 0.5)
    async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
        worker = Worker(PostgresBackend(dsn(), schema=schema), lease=SHORT)
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            open_one = await queue.enqueue(leave_open, dsn())
            while not OPEN:  # noqa: ASYNC110 - a fact of a thread
                await anyio.sleep(0.01)
            with anyio.fail_after(10):
                await worker.stop()
        assert "outcomes that could not be stored" in caplog.text
        await anyio.to_thread.run_sync(OPEN[0].rollback)
        # Nobody has told of it, so it is taken back as a lost one is.
        assert (await queue.get_task(open_one)).status is TaskStatus.IN_PROGRESS


@pytest.mark.parametrize("how", ["commit", "rollback"])
async def test_a_key_in_an_open_transaction_is_waited_for_by_its_caller_alone(
    schema: str, how: str
) -> None:
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    holder, keyed, plain = new_task(unique_key="k"), new_task(unique_key="k"), new_task()
    answers: list[str] = []
    with closing(psycopg.connect(dsn())) as connection:
        assert await backend.join(connection).enqueue([holder]) == [holder.id]

        async def ask() -> None:
            answers.extend(await backend.enqueue([keyed]))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            with anyio.fail_after(20):
                while not await waits_for_somebody():  # noqa: ASYNC110 - no event tells
                    await anyio.sleep(0.005)
                await backend.enqueue([plain])
                (taken,) = (await backend.reserve("w", ["default"], 5, LEASE)).tasks
            assert (taken.id, answers) == (plain.id, [])
            await anyio.to_thread.run_sync(getattr(connection, how))
    assert answers == [holder.id if how == "commit" else keyed.id]
    await backend.close()


async def waits_for_somebody() -> bool:
    """Return whether a statement waits for another transaction's end."""
    found = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid'"
    return bool(await anyio.to_thread.run_sync(query, found))
