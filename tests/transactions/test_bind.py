"""A task that is enqueued in the user's transaction exists if and only if that commits."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from sitq import MsgpackSerializer, TaskId, TaskQueue, TaskStatus, ValidationError, Worker, call
from sitq.models import Outcome, Task
from sitq.protocols import Backend
from sitq.transactions import TransactionalBackend
from tests.transactions.kinds import Own
from tests.transactions.places import Place
from tests.unit.queue_support import add, greet

pytestmark = pytest.mark.anyio

LATER = datetime(2031, 1, 1, tzinfo=UTC)


def count(place: Place) -> int:
    ((number,),) = place.look("SELECT count(*) FROM tasks")
    return int(number)


@asynccontextmanager
async def ended(queue: TaskQueue, task_id: TaskId[int]) -> AsyncIterator[list[TaskStatus]]:
    """Wait for a result besides; its status is there after the context."""
    statuses: list[TaskStatus] = []

    async def wait() -> None:
        if result := await queue.get_result(task_id):
            statuses.append(result.status)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            yield statuses


async def test_a_commit_brings_the_task_and_the_note(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    bound = queue.bind(own.given)
    task_id = await bound.enqueue(add, 1, 2)
    await own.write("mine")
    assert (count(place), place.notes) == (0, [])
    await own.commit()
    assert (count(place), place.notes) == (1, ["mine"])
    await Worker(place.backend()).drain()
    result = await queue.get_result(task_id)
    assert result is not None
    assert queue.deserialize_result(result) == 3


async def test_a_rollback_leaves_neither(queue: TaskQueue, place: Place, own: Own) -> None:
    await own.write("mine")
    await queue.bind(own.given).enqueue_many([call(add, 1, 2), call(add, 3, 4)])
    await own.rollback()
    assert (count(place), place.notes) == (0, [])


async def test_a_connection_that_is_closed_without_a_commit_leaves_neither(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    await own.write("mine")
    await queue.bind(own.given).enqueue(add, 1, 2)
    await own.close()
    assert (count(place), place.notes) == (0, [])


async def test_options_eta_and_batches_are_those_of_the_queue(queue: TaskQueue, own: Own) -> None:
    bound = queue.bind(own.given)
    ids = [
        await bound.options(priority=4, queue="mail", headers={"a": "b"}).enqueue(add, 1, b=2),
        await bound.enqueue(greet, "you", eta=LATER),
        *await bound.options(eta=LATER).enqueue_many(call(add, n, n) for n in range(300)),
        *await bound.enqueue_many([]),
    ]
    await own.commit()
    infos = [await queue.get_task(task_id) for task_id in ids]
    assert len(infos) == 302
    assert (infos[0].priority, infos[0].queue) == (4, "mail")
    assert {info.eta for info in infos[1:]} == {LATER}
    assert {info.status for info in infos} == {TaskStatus.PENDING}


async def test_a_unique_key_gives_its_holders_id(queue: TaskQueue, place: Place, own: Own) -> None:
    held = await queue.options(unique_key="a").enqueue(add, 1, 2)
    bound = queue.bind(own.given)
    assert await bound.options(unique_key="a").enqueue(add, 3, 4) == held
    mine = await bound.options(unique_key="b").enqueue(add, 3, 4)
    assert mine != held
    assert await bound.options(unique_key="b").enqueue_many([call(add, 5, 6)]) == [mine]
    await own.commit()
    assert count(place) == 2


async def test_a_holder_past_its_expiry_gives_way_with_the_commit(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    over = datetime.now(UTC) - timedelta(hours=1)
    old = await queue.options(unique_key="a", expires_at=over).enqueue(add, 1, 2)
    async with ended(queue, old) as result:
        bound = queue.bind(own.given).options(unique_key="a")
        new = await bound.enqueue(add, 3, 4)
        assert await bound.enqueue_many([call(add, 5, 6)]) == [new]
        await own.commit()
    assert result == [TaskStatus.EXPIRED]
    assert await queue.options(unique_key="a").enqueue(add, 7, 8) == new
    assert count(place) == 2


async def test_a_holder_put_off_beyond_its_expiry_gives_up_its_key_with_the_commit(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    old = await queue.options(unique_key="a", expires_at=soon).enqueue(add, 1, 2)
    backend = place.backend()
    await backend.open()
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    assert await backend.finish([Outcome.retry(task.lease, 3600.0, "Error: no", "frames")]) == [
        True
    ]
    await backend.close()
    new = await queue.bind(own.given).options(unique_key="a").enqueue(add, 3, 4)
    assert new != old
    await own.commit()
    assert (await queue.get_task(old)).status is TaskStatus.PENDING
    assert await queue.options(unique_key="a").enqueue(add, 5, 6) == new


async def test_a_holder_gives_way_only_if_the_transaction_commits(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    over = datetime.now(UTC) - timedelta(hours=1)
    old = await queue.options(unique_key="a", expires_at=over).enqueue(add, 1, 2)
    assert await queue.bind(own.given).options(unique_key="a").enqueue(add, 3, 4) != old
    await own.rollback()
    assert (await queue.get_task(old)).status is TaskStatus.PENDING
    assert count(place) == 1


async def test_what_was_refused_leaves_the_transaction_as_it_was(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    bound = queue.bind(own.given)
    await own.write("before")
    bad = MsgpackSerializer()
    with pytest.raises(ValidationError, match="'a'"):
        await bound.enqueue(add, bad, 2)  # type: ignore[call-overload]
    with pytest.raises(ValidationError, match=r"calls\[1\]"):
        await bound.enqueue_many([call(add, 1, 2), add])  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="priority"):
        bound.options(priority=1000)
    await own.write("after")
    await own.commit()
    assert (count(place), place.notes) == (0, ["after", "before"])


def some_task(**options: object) -> Task:
    return Task.model_validate({"function": "tests:nothing", "payload": b"secret"} | options)


async def test_a_batch_is_stored_whole_or_not_at_all(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    """Also if the owner goes on with the transaction in spite of the error."""
    await queue.enqueue(add, 1, 2)
    ((used,),) = place.look("SELECT id FROM tasks")
    backend: Backend = place.backend()
    assert isinstance(backend, TransactionalBackend)
    await backend.open()
    await own.write("before")
    tasks = [
        some_task(id="0190f5e2-7c3a-7bbb-8000-0123456789ab", unique_key="k"),
        some_task(id=used, unique_key="l"),
    ]
    with pytest.raises(Exception, match="enqueue on") as caught:
        await backend.join(own.given).enqueue(tasks)
    assert "secret" not in str(caught.value)
    await own.commit()
    assert (count(place), place.notes) == (1, ["before"])
    await backend.close()


async def test_a_sealed_payload_is_read_by_the_worker(place: Place, own: Own) -> None:
    signing = MsgpackSerializer(keys=[b"k" * 32])
    async with TaskQueue(place.backend(), signing) as queue:
        task_id = await queue.bind(own.given).enqueue(add, 1, 2)
        await own.commit()
        await Worker(place.backend(), signing).drain()
        result = await queue.get_result(task_id)
        assert result is not None
        assert queue.deserialize_result(result) == 3


async def test_a_worker_is_woken_after_the_commit(queue: TaskQueue, place: Place, own: Own) -> None:
    """It would look by itself after an hour only."""
    worker = Worker(place.backend(), poll_interval=3600)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            for number in range(3):
                if number:
                    await own.begin_again()
                task_id = await queue.bind(own.given).enqueue(add, number, 2)
                await own.write("mine")
                await anyio.wait_all_tasks_blocked()
                await own.commit()
                result = await queue.get_result(task_id)
                assert result is not None
                assert queue.deserialize_result(result) == number + 2
            await worker.stop()


async def test_a_bound_queue_shows_no_connection(queue: TaskQueue, own: Own) -> None:
    assert repr(queue.bind(own.given)) == f"TransactionQueue({queue._backend!r})"


@pytest.mark.parametrize("columns", ["id, title", "*"])
@pytest.mark.parametrize("unique_key", [None, "key"])
async def test_temporary_tables_of_the_same_names_are_not_taken_for_the_stores(
    queue: TaskQueue, tmp_path: Path, columns: str, unique_key: str | None
) -> None:
    with closing(sqlite3.connect(tmp_path / "q.db")) as connection:
        for table in ("tasks", "leases"):
            source = f"SELECT * FROM main.{table} WHERE 0" if columns == "*" else "SELECT 1 AS id"
            connection.execute(f"CREATE TEMP TABLE {table} AS {source}")
        bound = queue.bind(connection)
        keyed = bound.options(unique_key=unique_key) if unique_key else bound
        ids = [await keyed.enqueue(add, 1, 2)]
        held = [await keyed.enqueue(add, 1, 2), *await bound.enqueue_many([call(add, 3, 4)] * 2)]
        connection.commit()
    assert (held[0] == ids[0]) is (unique_key is not None)
    for task_id in [*ids, *held]:
        assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
