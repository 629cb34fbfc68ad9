"""With keys, a queue reads only results that a worker signed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sitq import (
    MsgpackSerializer,
    ResultSigningSerializer,
    RetryPolicy,
    SerializationError,
    SQLiteBackend,
    TaskFailedError,
    TaskId,
    TaskQueue,
    TaskStatus,
    Worker,
    _system_errors,
    current_task,
)
from sitq.models import Lease, Outcome
from sitq.payload.serialization import MsgpackSerializer as Msgpack
from sitq.worker import _outcome_writer
from tests.unit.queue_support import SpySerializer

KEY, OTHER = b"k" * 32, b"o" * 32
_: ResultSigningSerializer = Msgpack()


def double(number: int) -> int:
    return 2 * number


def fail(text: str) -> None:
    raise ValueError(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


@pytest.fixture
def backend(path: Path) -> SQLiteBackend:
    return SQLiteBackend(path, synchronous="NORMAL")


def alter(path: Path, change: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(f"UPDATE tasks SET {change}", values).rowcount == 1


async def worked(backend: SQLiteBackend, serializer: MsgpackSerializer | None = None) -> None:
    await Worker(backend, serializer or SpySerializer(KEY), tasks=[double, fail]).drain()


FORGED = MsgpackSerializer().dumps(666)
SUCCESS = "status = 'success', error = NULL, traceback = NULL, value = ?"


@pytest.mark.anyio
async def test_a_signed_result_is_read_as_the_value_that_was_returned(
    backend: SQLiteBackend,
) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(double, 21)
        await worked(backend)
        assert await queue.result(task_id) == 42
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.value == MsgpackSerializer().dumps(42)
        assert queue.deserialize_result(result) == 42


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["boom", "nul \0 character", ""])
async def test_a_signed_failure_is_read_with_its_error_and_traceback(
    backend: SQLiteBackend, text: str
) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(fail, text)
        await worked(backend)
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.error is not None
        assert result.error.startswith("ValueError")
        assert result.traceback is not None
        assert "raise ValueError(text)" in result.traceback
        assert "signature" not in result.traceback
        with pytest.raises(TaskFailedError, match="ValueError"):
            await queue.result(task_id)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "values"),
    [
        ("value = ?", [FORGED]),
        ("value = CAST(substr(value, 1, 34) || ? AS BLOB)", [FORGED]),
        ("value = substr(value, 1, 20)", []),
        ("value = X''", []),
        ("function = replace(function, 'double', 'fail')", []),
        ("status = 'failed', value = NULL, error = 'ValueError: no'", []),
        ("status = 'cancelled', value = NULL, error = 'ValueError: no'", []),
        ("status = 'expired', value = NULL, traceback = 'frames'", []),
        (
            "status = 'failed', value = NULL, error = ?, traceback = 'x'",
            [_system_errors.UNREADABLE],
        ),
    ],
    ids=range(9),
)
async def test_a_forged_result_is_refused_before_any_of_it_is_decoded(
    backend: SQLiteBackend, path: Path, change: str, values: list[object]
) -> None:
    serializer = SpySerializer(KEY)
    async with TaskQueue(backend, serializer) as queue:
        task_id = await queue.enqueue(double, 21)
        await worked(backend)
        alter(path, change, *values)
        with pytest.raises(SerializationError, match="signature"):
            await queue.get_result(task_id)
        with pytest.raises(SerializationError, match="signature"):
            await queue.result(task_id)
        result = await TaskQueue(backend).get_task(task_id)
    assert result.status.is_final
    assert serializer.decoded == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "values"),
    [
        ("error = 'ValueError: another'", []),
        ("traceback = 'another' || traceback", []),
        ("traceback = NULL", []),
        (SUCCESS, [FORGED]),
        (SUCCESS, [b"\xc1\x01" + bytes(32) + FORGED]),
    ],
    ids=range(5),
)
async def test_a_failure_that_was_altered_is_refused(
    backend: SQLiteBackend, path: Path, change: str, values: list[object]
) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(fail, "boom")
        await worked(backend)
        alter(path, change, *values)
        with pytest.raises(SerializationError, match="signature"):
            await queue.get_result(task_id)


@pytest.mark.anyio
async def test_a_result_of_another_task_is_refused(backend: SQLiteBackend, path: Path) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        ids = [await queue.enqueue(double, number) for number in (1, 2)]
        await worked(backend)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "UPDATE tasks SET value = (SELECT value FROM tasks WHERE id = ?) WHERE id = ?", ids
            )
        assert await queue.result(ids[0]) == 2
        with pytest.raises(SerializationError, match="signature"):
            await queue.result(ids[1])


@pytest.mark.anyio
async def test_ends_that_the_store_writes_are_read_without_a_signature(
    backend: SQLiteBackend, path: Path
) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(double, 1)
        await queue.cancel(task_id)
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.status is TaskStatus.CANCELLED
        alter(path, "status = 'failed', error = ?", _system_errors.LOST_ERROR % 3)
        with pytest.raises(TaskFailedError, match="3 workers"):
            await queue.result(task_id)


def _refused(outcome: Outcome) -> str:
    plain = _outcome_writer.storable_outcome(outcome)
    assert plain is not None
    assert plain.error is not None
    return plain.error


_LEASE = Lease(TaskId("01900000-0000-7000-8000-000000000000"), 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        _system_errors.LOST_ERROR % 3,
        _system_errors.UNREADABLE,
        _refused(Outcome.success(_LEASE, b"")),
        _refused(Outcome.failure(_LEASE, "no")),
    ],
)
async def test_every_text_of_the_stores_own_is_known(
    backend: SQLiteBackend, path: Path, error: str
) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(double, 1)
        await queue.cancel(task_id)
        alter(path, "status = 'failed', error = ?", error)
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.error == error


@pytest.mark.anyio
async def test_a_task_whose_attempts_are_spent_at_the_fence_has_a_signed_error(
    backend: SQLiteBackend,
) -> None:
    """The store makes a failure of a retry where the task's own policy allows no more."""
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        bound = queue.options(retry=RetryPolicy(max_attempts=2, delay=0))
        task_id = await bound.enqueue(fail, "boom")
        await worked(backend)
        await worked(backend)
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.error == "ValueError: boom"


@pytest.mark.anyio
async def test_an_old_key_still_reads_and_an_unknown_one_does_not(backend: SQLiteBackend) -> None:
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(double, 21)
        await worked(backend)
    async with TaskQueue(backend, SpySerializer(OTHER, KEY)) as queue:
        assert await queue.result(task_id) == 42
    async with TaskQueue(backend, SpySerializer(OTHER)) as queue:
        with pytest.raises(SerializationError, match="key that is not known"):
            await queue.get_result(task_id)
    async with TaskQueue(backend) as queue:
        with pytest.raises(SerializationError, match="there are no keys"):
            await queue.get_result(task_id)


@pytest.mark.anyio
async def test_a_result_that_was_never_signed_is_refused(backend: SQLiteBackend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(double, 21)
        await worked(backend, MsgpackSerializer())
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        with pytest.raises(SerializationError, match="not signed"):
            await queue.get_result(task_id)


class TasksOnly:
    """A user's serializer that signs tasks and does not sign results."""

    def __init__(self) -> None:
        self._inner = MsgpackSerializer(keys=[KEY])
        self.dumps = self._inner.dumps
        self.loads = self._inner.loads
        self.seal = self._inner.seal
        self.unseal = self._inner.unseal


@pytest.mark.anyio
async def test_a_serializer_that_seals_tasks_only_stores_plain_results(
    backend: SQLiteBackend,
) -> None:
    async with TaskQueue(backend, TasksOnly()) as queue:
        task_id = await queue.enqueue(double, 21)
        await Worker(backend, TasksOnly()).drain()
        assert await queue.result(task_id) == 42
    async with TaskQueue(backend) as queue:
        assert await queue.result(task_id) == 42


class Broken(MsgpackSerializer):
    """A serializer whose seals fail."""

    def seal_outcome(self, task: object, outcome: object) -> Any:
        raise RuntimeError("no seal")


@pytest.mark.anyio
async def test_a_seal_that_raises_fails_its_task_only(backend: SQLiteBackend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(double, 21)
        await worked(backend, Broken())
        with pytest.raises(TaskFailedError, match="RuntimeError: no seal"):
            await queue.result(task_id)


PATHS: list[Path] = []


def complete(number: int) -> int:
    with closing(sqlite3.connect(PATHS[0])) as database, database:
        database.execute("BEGIN IMMEDIATE")
        current_task().complete_in_sync(database, number)
    return 0


@pytest.mark.anyio
async def test_a_task_that_completes_itself_has_a_signed_result(
    backend: SQLiteBackend, path: Path
) -> None:
    PATHS[:] = [path]
    async with TaskQueue(backend, SpySerializer(KEY)) as queue:
        task_id = await queue.enqueue(complete, 7)
        await Worker(backend, SpySerializer(KEY)).drain()
        result = await queue.get_result(task_id)
        assert result is not None
        assert result.value == MsgpackSerializer().dumps(7)
