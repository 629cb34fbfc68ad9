"""Results, and what else the queue tells of tasks and does with them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

import anyio
import pydantic
import pytest

from sitq import (
    BackendBusyError,
    BackendConnectionError,
    Result,
    SerializationError,
    TaskFailedError,
    TaskId,
    TaskNotFoundError,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
)
from sitq.ids import new_task_id
from sitq.payload._value_codec import ValueCodec
from tests.unit.queue_support import SpyBackend, add, finish, greet, mail, spied_queue

pytestmark = pytest.mark.anyio

UNKNOWN = new_task_id()


async def test_a_result_carries_status_value_and_times() -> None:
    async with spied_queue() as (queue, backend, clock):
        enqueued = clock.now()
        task_id = await queue.enqueue(add, 1, 2)
        clock.jump(5)
        await finish(backend, 3)
        result = await queue.get_result(task_id, timeout=0)
        assert result is not None
        assert queue.deserialize_result(result) == 3
    assert (result.task_id, result.status, result.attempts) == (task_id, TaskStatus.SUCCESS, 1)
    assert result.enqueued_at == enqueued
    assert result.finished_at == enqueued + timedelta(seconds=5)


async def test_a_task_that_is_not_final_has_no_result_yet() -> None:
    async with spied_queue() as (queue, _, _):
        task_id = await queue.enqueue(add, 1, 2)
        assert await queue.get_result(task_id, timeout=0) is None


@pytest.mark.parametrize("method", ["get_result", "result", "get_task", "cancel", "retry"])
@pytest.mark.parametrize(
    "task_id",
    [UNKNOWN, "no id at all", "", UNKNOWN.upper(), f"{UNKNOWN}\n"],
    ids=["unknown", "malformed", "empty", "upper-case", "with a line end"],
)
async def test_an_unknown_id_is_a_task_not_found_error(method: str, task_id: str) -> None:
    async with spied_queue() as (queue, _, _):
        with pytest.raises(TaskNotFoundError):
            await getattr(queue, method)(task_id)


@pytest.mark.parametrize("method", ["get_result", "result", "get_task", "cancel", "retry"])
@pytest.mark.parametrize("task_id", [None, 7, b"x", object()])
async def test_what_is_no_text_is_refused_as_an_id(method: str, task_id: Any) -> None:
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match="task_id: .*got"):
            await getattr(queue, method)(task_id)


@pytest.mark.parametrize("timeout", [-1, -0.1, math.nan, math.inf, True, "1", timedelta(1)])
async def test_what_is_no_number_of_seconds_is_refused_as_a_timeout(timeout: Any) -> None:
    async with spied_queue() as (queue, _, _):
        task_id = await queue.enqueue(add, 1, 2)
        with pytest.raises(ValidationError, match="timeout: .*got"):
            await queue.get_result(task_id, timeout=timeout)
        with pytest.raises(ValidationError, match="timeout: .*got"):
            await queue.result(task_id, timeout=timeout)


async def test_a_failed_task_has_status_error_and_remote_traceback() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, error="ValueError: no")
        result = await queue.get_result(task_id)
        assert result is not None
        with pytest.raises(TaskFailedError) as caught:
            queue.deserialize_result(result)
    text = str(caught.value)
    for part in (task_id, "failed", "ValueError: no", "Traceback: the remote one"):
        assert part in text


async def test_a_cancelled_task_has_no_value() -> None:
    async with spied_queue() as (queue, _, _):
        task_id = await queue.enqueue(add, 1, 2)
        assert await queue.cancel(task_id) is True
        result = await queue.get_result(task_id)
        assert result is not None
        assert await queue.cancel(task_id) is False
        with pytest.raises(TaskFailedError, match="cancelled"):
            queue.deserialize_result(result)


async def test_result_gives_the_value_itself() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(finish, backend, 3)
            assert await queue.result(task_id) == 3
        assert await queue.result(task_id, timeout=0) == 3


async def test_result_of_a_task_without_success_is_a_task_failed_error() -> None:
    async with spied_queue() as (queue, backend, _):
        failed = await queue.enqueue(add, 1, 2)
        await finish(backend, error="ValueError: no")
        cancelled = await queue.enqueue(add, 1, 2)
        await queue.cancel(cancelled)
        with pytest.raises(TaskFailedError, match="ValueError: no"):
            await queue.result(failed)
        with pytest.raises(TaskFailedError, match="cancelled"):
            await queue.result(cancelled)


@pytest.mark.parametrize("timeout", [0, 0.01])
async def test_result_of_a_task_that_is_not_final_is_a_builtin_timeout_error(
    timeout: float,
) -> None:
    async with TaskQueue(SpyBackend()) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        with pytest.raises(TimeoutError, match="not final") as caught:
            await queue.result(task_id, timeout)
        assert type(caught.value) is TimeoutError
        assert (await queue.get_task(task_id)).status is TaskStatus.PENDING


async def test_the_value_of_an_unknown_function_comes_back_plain() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(greet, "you")
        await finish(backend, {"a": 1})
        result: Result[object] | None = await queue.get_result(str(task_id))
        assert result is not None
        foreign = result.model_copy(update={"function": "elsewhere:greet"})
        assert queue.deserialize_result(foreign) == {"a": 1}


class Level(Enum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


class Shape(pydantic.BaseModel):
    level: Level = Level.LOW
    points: set[Point] = set()
    name: str = ""


def draw() -> list[Shape]:
    return []


async def test_the_value_of_an_unknown_function_has_no_names_of_sitqs_own() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(draw)
        shapes = [Shape(points={Point(1, 2)})]
        lowered = ValueCodec(list[Shape]).dump(shapes)
        await finish(backend, lowered)
        result: Result[Any] | None = await queue.get_result(str(task_id))
        assert result is not None
        assert queue.deserialize_result(result) == shapes
        foreign = result.model_copy(update={"function": "elsewhere:draw"})
        expected = [{"level": 1, "points": {(1, 2)}, "name": ""}]
        assert queue.deserialize_result(foreign) == expected


async def test_a_value_that_cannot_be_decoded_is_a_serialization_error() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        result = await queue.get_result(task_id)
        assert result is not None
        for value in (b"\xc1", None):
            broken = result.model_copy(update={"value": value})
            with pytest.raises(SerializationError):
                queue.deserialize_result(broken)


@pytest.mark.parametrize("result", [None, 3, b"\x03"])
async def test_what_is_no_result_cannot_be_deserialized(result: Any) -> None:
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match="not final yet.*got"):
            queue.deserialize_result(result)


async def test_a_tasks_state_can_be_read_at_any_time() -> None:
    async with spied_queue() as (queue, backend, clock):
        task_id = await queue.enqueue(mail, "a")
        before = await queue.get_task(task_id)
        await finish(backend)
        after = await queue.get_task(task_id)
    assert (before.status, before.attempts, before.queue) == (TaskStatus.PENDING, 0, "mail")
    assert before.eta == clock.now()
    assert (after.status, after.attempts) == (TaskStatus.SUCCESS, 1)


async def test_a_final_task_is_retried_as_a_new_one_that_is_due_at_once() -> None:
    async with spied_queue() as (queue, backend, clock):
        end = clock.now() + timedelta(seconds=60)
        bound = queue.options(
            eta=clock.now() + timedelta(seconds=1),
            expires_at=end,
            headers={"a": "b"},
            unique_key="one",
            timeout=9,
        )
        old_id = await bound.enqueue(mail, "a")
        clock.jump(2)
        await finish(backend, error="ValueError: no")
        old_info = await queue.get_task(old_id)
        new_id: TaskId[None] = await queue.retry(old_id)
        old, new = backend.stored
        info = await queue.get_task(new_id)
        again = old_info.model_copy(update={"retried_as": new_id})
        assert await queue.get_task(old_id) == again
    assert new_id != old_id
    assert (info.retry_of, info.status, info.attempts) == (old_id, TaskStatus.PENDING, 0)
    assert info.eta == clock.now()
    assert (new.eta, new.expires_at) == (None, None)
    same = ("function", "payload", "queue", "priority", "timeout", "headers", "unique_key")
    assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]


async def test_a_retry_never_makes_a_second_holder_of_a_unique_key() -> None:
    async with spied_queue() as (queue, backend, _):
        bound = queue.options(unique_key="one")
        old_id = await bound.enqueue(add, 1, 2)
        await finish(backend, 3)
        holder = await bound.enqueue(add, 3, 4)
        assert await queue.retry(old_id) == holder


async def test_a_task_that_is_not_final_cannot_be_retried() -> None:
    async with spied_queue() as (queue, _, _):
        task_id = await queue.enqueue(add, 1, 2)
        with pytest.raises(UsageError, match="pending.*wait for its result, or cancel it first"):
            await queue.retry(task_id)


async def test_pruning_removes_what_ended_so_long_ago_in_batches() -> None:
    async with spied_queue() as (queue, backend, clock):
        for _ in range(2500):
            await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        clock.jump(10)
        young = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        assert await queue.prune(11) == 0
        assert await queue.prune(10) == 2500
        assert await queue.get_result(young, timeout=0) is not None
        assert await queue.prune(older_than=0) == 1


@pytest.mark.parametrize("seconds", [-1, math.nan, True, "1", None])
async def test_what_is_no_number_of_seconds_prunes_nothing(seconds: Any) -> None:
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match="older_than: .*got"):
            await queue.prune(seconds)


async def test_times_of_results_are_aware() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        result = await queue.get_result(task_id)
    assert result is not None
    assert isinstance(result.finished_at, datetime)
    assert result.finished_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("timeout", [0, 1.0])
async def test_a_store_that_does_not_answer_is_an_error_five_seconds_after_the_timeout(
    timeout: float,
) -> None:
    errors: list[Exception] = []

    async def get() -> None:
        try:
            await queue.get_result(task_id, timeout)
        except BackendBusyError as error:
            errors.append(error)

    async with spied_queue() as (queue, backend, clock), anyio.create_task_group() as group:
        task_id = await queue.enqueue(add, 1, 2)
        backend.hanging = 2
        group.start_soon(get)
        for seconds in (timeout, 4.9):
            await anyio.wait_all_tasks_blocked()
            clock.advance(seconds)
        await anyio.wait_all_tasks_blocked()
        assert not errors
        clock.advance(0.1)
    assert "has not answered" in str(errors[0])


async def test_an_error_of_the_only_look_comes_as_it_is() -> None:
    async with spied_queue() as (queue, backend, _):
        task_id = await queue.enqueue(add, 1, 2)
        backend.errors.append(BackendConnectionError("gone"))
        with pytest.raises(BackendConnectionError, match="^gone$"):
            await queue.get_result(task_id, 0)
