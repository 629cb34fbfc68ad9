"""`@task(store_result=False)`: a success whose value is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitq import MsgpackSerializer, TaskFailedError, TaskQueue, TaskStatus, task
from tests.worker.gate import ended, working

pytestmark = pytest.mark.anyio


@task(store_result=False)
async def numbers(count: int) -> list[int]:
    return list(range(count))


@task(store_result=False)
def a_connection() -> object:
    """Returns what no payload can carry."""
    return object()


@task(store_result=False)
async def fail() -> int:
    raise ZeroDivisionError


@pytest.mark.parametrize("keys", [None, [b"k" * 32]])
async def test_a_success_is_stored_without_its_value(
    tmp_path: Path, queue: TaskQueue, keys: list[bytes] | None
) -> None:
    serializer = MsgpackSerializer(keys=keys)
    async with working(tmp_path, serializer=serializer):
        sealed = TaskQueue(queue._backend, serializer)
        async with sealed:
            task_id = await sealed.enqueue(numbers, 1000)
            result = await ended(sealed, task_id)
            assert result.status is TaskStatus.SUCCESS
            assert result.value is not None
            assert len(result.value) < 100
            value: object = await sealed.result(task_id)
            assert value is None
            foreign = result.model_copy(update={"function": "elsewhere:numbers"})
            if keys is None:  # else the seal says which function's it is
                assert sealed.deserialize_result(foreign) is None


async def test_a_value_that_no_payload_can_carry_does_no_harm(
    tmp_path: Path, queue: TaskQueue
) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(a_connection))
    assert result.status is TaskStatus.SUCCESS


async def test_a_failure_is_stored_as_ever(tmp_path: Path, queue: TaskQueue) -> None:
    async with working(tmp_path):
        with pytest.raises(TaskFailedError, match="ZeroDivisionError"):
            await queue.result(await queue.enqueue(fail), timeout=20)
