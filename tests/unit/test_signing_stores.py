"""With keys, nothing runs that was altered in the store, and nothing of it is decoded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    MsgpackSerializer,
    Result,
    RetryPolicy,
    SerializationError,
    SQLiteBackend,
    SyncTaskQueue,
    TaskId,
    TaskQueue,
    TaskStatus,
    Worker,
    call,
)
from sitq.backends.memory import MemoryBackend
from sitq.ids import new_task_id
from sitq.protocols import Backend
from sitq.testing import FakeClock
from tests.unit.queue_support import SpyBackend, SpySerializer

KEY = b"k" * 32
OTHER = b"o" * 32
RAN: list[str] = []


def note(text: str) -> str:
    RAN.append(text)
    return text


def spend(text: str) -> str:
    RAN.append(f"spent {text}")
    return text


def fail(text: str) -> str:
    RAN.append(text)
    raise RuntimeError(text)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    return SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")


def alter(backend: Backend, task_id: TaskId[Any], column: str, value: object) -> TaskId[Any]:
    """Change a stored task behind sitq's back; return the id that it has then."""
    if isinstance(backend, MemoryBackend):
        row = backend._rows.by_id.pop(task_id)
        task = row.task.model_copy(update={column: value})
        eta = value if isinstance(value, datetime) else row.eta
        backend._rows.by_id[task.id] = replace(row, task=task, eta=eta)
        return task.id
    assert isinstance(backend, SQLiteBackend)
    if isinstance(value, datetime):
        value = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    with closing(sqlite3.connect(backend._path)) as database, database:
        changed = database.execute(f"UPDATE tasks SET {column} = ? WHERE id = ?", (value, task_id))
        assert changed.rowcount == 1
    return TaskId(str(value)) if column == "id" else task_id


async def worked(backend: Backend, serializer: MsgpackSerializer) -> None:
    worker = Worker(
        backend,
        serializer,
        tasks=[note, spend, fail],
        queues=["default", "other"],
        retry=RetryPolicy(max_attempts=5),
    )
    await worker.drain()


async def result_of(queue: TaskQueue, task_id: TaskId[Any]) -> Result[Any]:
    result: Result[Any] | None = await queue.get_result(task_id, timeout=0)
    assert result is not None
    return result


def assert_refused(
    result: Result[Any], serializer: SpySerializer, text: str = "bad signature"
) -> None:
    assert result.status is TaskStatus.FAILED
    assert result.error is not None
    assert text in result.error
    assert "SerializationError" in result.error
    assert result.attempts == 1  # never tried again, whatever the policy
    assert serializer.decoded == []
    assert RAN == []


@pytest.mark.anyio
async def test_signed_tasks_run_and_give_results_that_are_signed(backend: Backend) -> None:
    serializer = SpySerializer(KEY)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    async with TaskQueue(backend, serializer) as queue:
        ids = [
            await queue.enqueue(note, "plain"),
            await queue.options(eta=past, queue="other").enqueue(note, "eta"),
            await queue.options(delay=0).enqueue(note, "delay"),
            *await queue.enqueue_many([call(note, "first of many"), call(note, "second")]),
        ]
        await worked(backend, serializer)
        results = [await result_of(queue, task_id) for task_id in ids]
    assert sorted(RAN) == ["delay", "eta", "first of many", "plain", "second"]
    unsigned = TaskQueue(MemoryBackend(), MsgpackSerializer())
    values = [unsigned.deserialize_result(result) for result in results]
    assert values == ["plain", "eta", "delay", "first of many", "second"]


def test_a_sync_queue_signs_too(tmp_path: Path) -> None:
    with SyncTaskQueue(SQLiteBackend(tmp_path / "q.db"), MsgpackSerializer(keys=[KEY])) as queue:
        queue.enqueue(note, "one")
    with closing(sqlite3.connect(tmp_path / "q.db")) as database:
        ((payload,),) = database.execute("SELECT payload FROM tasks").fetchall()
    assert payload[:2] == b"\xc1\x01"


EARLIER = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", new_task_id()),
        ("function", "spend"),
        ("queue", "other"),
        ("eta", EARLIER),
        ("payload", MsgpackSerializer().dumps([["forged"], {}])),
        ("payload", b""),
    ],
    ids=["id", "function", "queue", "eta", "payload", "no payload"],
)
async def test_an_altered_task_fails_undecoded_and_its_neighbour_runs(
    backend: Backend, column: str, value: object
) -> None:
    serializer = SpySerializer(KEY)
    async with TaskQueue(backend, serializer) as queue:
        task_id = await queue.options(eta=EARLIER + timedelta(days=1)).enqueue(note, "victim")
        if value == "spend":
            value = (await queue.get_task(task_id)).function.replace("note", "spend")
        task_id = alter(backend, task_id, column, value)
        await worked(backend, serializer)
        assert_refused(await result_of(queue, task_id), serializer)
        await queue.enqueue(note, "neighbour")
        await worked(backend, serializer)
    assert RAN == ["neighbour"]


@pytest.mark.anyio
async def test_a_task_moved_to_before_its_eta_does_not_run(backend: Backend) -> None:
    serializer = SpySerializer(KEY)
    async with TaskQueue(backend, serializer) as queue:
        far = datetime.now(UTC) + timedelta(days=1)
        task_id = await queue.options(eta=far).enqueue(note, "tomorrow")
        alter(backend, task_id, "eta", EARLIER)
        await worked(backend, serializer)
        assert_refused(await result_of(queue, task_id), serializer, "bad signature: the eta")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("signing", "verifying", "text"),
    [
        ([], [KEY], "bad signature: the task is not signed"),
        ([KEY], [], "the task has a signature, and there are no keys"),
        ([KEY], [OTHER], "bad signature"),
    ],
    ids=["unsigned", "no keys", "another key"],
)
async def test_a_worker_whose_keys_do_not_fit_fails_the_task_undecoded(
    backend: Backend, signing: list[bytes], verifying: list[bytes], text: str
) -> None:
    serializer = SpySerializer(*verifying)
    async with TaskQueue(backend, SpySerializer(*signing)) as queue:
        task_id = await queue.enqueue(note, "one")
        await worked(backend, serializer)
    async with TaskQueue(backend, serializer) as queue:
        assert_refused(await result_of(queue, task_id), serializer, text)


@pytest.mark.anyio
async def test_what_the_old_key_signed_runs_after_the_rotation(backend: Backend) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        await queue.enqueue(note, "old")
    async with TaskQueue(backend, SpySerializer(OTHER, KEY)) as queue:
        await queue.enqueue(note, "new")
        await worked(backend, SpySerializer(KEY, OTHER))
    assert sorted(RAN) == ["new", "old"]  # plain functions run side by side


@pytest.mark.anyio
async def test_a_signed_task_with_an_eta_is_still_good_when_it_is_tried_again() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    serializer = SpySerializer(KEY)
    policy = RetryPolicy(max_attempts=2, delay=5, jitter=0)
    async with TaskQueue(backend, serializer) as queue:
        patient = queue.options(eta=clock.now(), retry=policy)
        task_id = await patient.enqueue(fail, "again")
        await worked(backend, serializer)
        clock.advance(5)
        await worked(backend, serializer)
        result = await result_of(queue, task_id)
    assert RAN == ["again", "again"]
    assert result.error == "RuntimeError: again"


# -- TaskQueue.retry -------------------------------------------------------------------------


async def cancelled(queue: TaskQueue, eta: datetime | None = None) -> TaskId[Any]:
    task_id = await queue.options(eta=eta, queue="other").enqueue(note, "again")
    assert await queue.cancel(task_id)
    return task_id


@pytest.mark.anyio
async def test_a_retried_task_is_signed_as_the_new_task_that_it_is(backend: Backend) -> None:
    eta = datetime.now(UTC) + timedelta(days=1)
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        old = await cancelled(queue, eta)
    async with TaskQueue(backend, SpySerializer(OTHER, KEY)) as queue:
        new = await queue.retry(old)
        await worked(backend, SpySerializer(OTHER))
        result = await result_of(queue, new)
    assert (result.status, result.error) == ("success", None)
    assert RAN == ["again"]


@pytest.mark.anyio
async def test_an_altered_task_cannot_be_retried_into_a_good_signature(backend: Backend) -> None:
    serializer = SpySerializer(KEY)
    async with TaskQueue(backend, serializer) as queue:
        task_id = await cancelled(queue)
        name = (await queue.get_task(task_id)).function.replace("note", "spend")
        alter(backend, task_id, "function", name)
        with pytest.raises(SerializationError, match="signature"):
            await queue.retry(task_id)
        await worked(backend, serializer)
    assert (RAN, serializer.decoded) == ([], [])


@pytest.mark.anyio
@pytest.mark.parametrize(("before", "after"), [([], [KEY]), ([KEY], [])], ids=["none", "some"])
async def test_a_queue_whose_keys_do_not_fit_cannot_retry_a_task(
    before: list[bytes], after: list[bytes]
) -> None:
    backend = SpyBackend()
    async with (
        TaskQueue(backend, SpySerializer(*before)) as queue,
        TaskQueue(backend, SpySerializer(*after)) as other,
    ):
        task_id = await cancelled(queue)
        with pytest.raises(SerializationError, match="signature"):
            await other.retry(task_id)
    assert len(backend.stored) == 1
