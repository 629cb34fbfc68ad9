"""Tasks that are kept as what they have in common: they are the tasks that they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from sitq import MsgpackSerializer, SQLiteBackend, TaskQueue, ValidationError, call
from sitq._task_batch import TaskBatch, concat, has_keys, ids_of, split
from sitq.ids import new_task_id, new_task_ids
from sitq.models import Task
from sitq.protocols import Serializer
from tests.unit.queue_support import SpyBackend, add, arguments, greet


def new_task(**options: Any) -> Task:
    return Task(**{"id": new_task_id(), "function": "m:f", "payload": b"p"} | options)


def alike(*payloads: bytes, **options: Any) -> TaskBatch:
    return TaskBatch(new_task(**options), new_task_ids(len(payloads)), list(payloads))


def test_they_are_a_sequence_of_tasks_as_if_each_had_been_made_by_itself() -> None:
    batch = alike(b"a", b"", b"c", priority=5, headers={"k": "v"})
    made = [
        new_task(id=task_id, payload=payload, priority=5, headers={"k": "v"})
        for task_id, payload in zip(batch.ids, batch.payloads, strict=True)
    ]
    assert list(batch) == made
    assert (batch[0], batch[-1], batch[1:], len(batch)) == (made[0], made[2], made[1:], 3)
    assert batch[0] is next(iter(batch))
    assert batch[0].model_copy(update={"priority": 1}).priority == 1
    assert (batch[0].priority, batch.pattern.priority) == (5, 5)


def test_batches_that_are_alike_by_value_are_one() -> None:
    batches = [alike(b"a", b"b"), alike(b"c"), [new_task(payload=b"d")], []]
    joined = concat(batches)
    assert isinstance(joined, TaskBatch)
    assert joined.payloads == [b"a", b"b", b"c", b"d"]
    assert split(joined.ids, batches) == [ids_of(batch) for batch in batches]
    assert list(joined) == [task for batch in batches for task in batch]


@pytest.mark.parametrize("option", [{"function": "m:g"}, {"unique_key": "k"}, {"retry_of": None}])
def test_batches_that_differ_stay_a_list_in_order(option: dict[str, Any]) -> None:
    batches = [alike(b"a"), alike(b"b", **{"priority": 1} | option), alike(b"c")]
    joined = concat(batches)
    assert not isinstance(joined, TaskBatch)
    assert [task.payload for task in joined] == [b"a", b"b", b"c"]
    assert has_keys(joined) == has_keys(batches[1]) == ("unique_key" in option)


def test_tasks_whose_keys_end_at_the_start_stay_a_list() -> None:
    made = [new_task(unique_until="start"), new_task(unique_until="start")]
    assert not isinstance(concat([made]), TaskBatch)


def test_nothing_joined_is_nothing() -> None:
    assert list(concat([])) == list(concat([[], []])) == []


@pytest.mark.anyio
async def test_a_batch_of_several_functions_is_stored_in_order(tmp_path: Any) -> None:
    """Some turns of the encoding hold one function only, one holds both, and one nothing."""
    calls: list[Any] = [call(add, n, n) for n in range(250)]
    calls += [call(greet, str(n)) for n in range(150)]
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many(calls)
        assert ids == sorted(set(ids))
        stored = [await backend.load_task(task_id) for task_id in ids]
    expected = [{"a": n, "b": n} for n in range(250)] + [{"name": str(n)} for n in range(150)]
    assert [arguments(task) for task in stored] == expected


class Sealing(MsgpackSerializer):
    """A serializer without keys that seals in a way of its own."""

    def seal(self, task: Task) -> Task:
        return task.model_copy(update={"payload": b"sealed" + task.payload})


class Wrapper:
    """A serializer that passes everything on, a seal too."""

    def __init__(self, inner: Serializer) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Odd(MsgpackSerializer):
    """A serializer that does not keep to its types."""

    def dumps(self, value: Any) -> Any:
        return super().dumps(value).hex()


@pytest.mark.anyio
@pytest.mark.parametrize("serializer", [Sealing(), Wrapper(Sealing())])
async def test_a_seal_of_any_class_is_put_on_each_task(serializer: Any) -> None:
    backend = SpyBackend()
    async with TaskQueue(backend, serializer) as queue:
        await queue.enqueue(add, 1, 2)
        await queue.enqueue_many([call(add, n, n) for n in range(3)])
    assert [task.payload[:6] for task in backend.stored] == [b"sealed"] * 4


@pytest.mark.anyio
async def test_a_payload_that_is_not_bytes_is_refused_and_nothing_is_stored() -> None:
    backend = SpyBackend()
    async with TaskQueue(backend, Odd()) as queue:
        with pytest.raises(ValidationError, match=r"payload: .*got str"):
            await queue.enqueue(add, 1, 2)
        with pytest.raises(ValidationError, match=r"calls\[0\]: .*payload: .*got str"):
            await queue.enqueue_many([call(add, 1, 2)])
    assert backend.stored == []
