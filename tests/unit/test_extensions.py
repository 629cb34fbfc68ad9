"""Extensions of a queue: what goes around its enqueues, and the events that it makes."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    BackendBusyError,
    Extension,
    MsgpackSerializer,
    SQLiteBackend,
    SyncTaskQueue,
    Task,
    TaskId,
    TaskQueue,
    UsageError,
    ValidationError,
    Worker,
    call,
)
from sitq.backends.memory import MemoryBackend
from sitq.extensions import Event, TaskEnqueued
from sitq.testing import FaultyBackend
from tests.unit.queue_support import SpyBackend, add, finish, greet

Next = Callable[[Sequence[Task]], Awaitable[list[TaskId[Any]]]]
CALLER: ContextVar[str] = ContextVar("caller", default="unknown")


@dataclass  # it has no hash
class Heard(Extension):
    """Keeps the events."""

    events: list[Event] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        self.events.append(event)


class Marks(Extension):
    """Adds a header, and notes when it is called."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def around_enqueue(self, tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
        self.log.append(f"{self.name} before")
        ids = await call_next(
            [each.with_headers({self.name: CALLER.get(), "last": self.name}) for each in tasks]
        )
        self.log.append(f"{self.name} after")
        return ids


class Does(Extension):
    """Does around an enqueue what a test says."""

    def __init__(self, what: Callable[[Sequence[Task], Next], Awaitable[Any]]) -> None:
        self.what = what

    async def around_enqueue(self, tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
        ids: list[TaskId[Any]] = await self.what(tasks, call_next)
        return ids


@pytest.mark.anyio
async def test_extensions_nest_in_the_order_given_and_see_the_callers_context() -> None:
    log: list[str] = []
    backend = SpyBackend()
    extensions = [Marks("outer", log), Marks("inner", log)]
    async with TaskQueue(backend, extensions=extensions) as queue:
        CALLER.set("ada")
        await queue.options(headers={"own": "1", "last": "own"}).enqueue(add, 1, 2)
    assert log == ["outer before", "inner before", "inner after", "outer after"]
    assert dict(backend.stored[0].headers) == {
        "own": "1",
        "outer": "ada",
        "inner": "ada",
        "last": "inner",
    }


@pytest.mark.anyio
async def test_the_method_of_the_base_class_passes_through() -> None:
    class Calls(Extension):
        async def around_enqueue(self, tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
            return await super().around_enqueue(tasks, call_next)

    backend = SpyBackend()
    async with TaskQueue(backend, extensions=[Calls()]) as queue:
        task_id = await queue.enqueue(add, 1, 2)
    assert [each.id for each in backend.stored] == [task_id]


@pytest.mark.anyio
async def test_many_tasks_go_through_together_and_keep_their_order() -> None:
    backend, heard = SpyBackend(), Heard()
    async with TaskQueue(backend, extensions=[Marks("one", []), heard]) as queue:
        ids = await queue.enqueue_many([call(add, number, 1) for number in range(450)])
        assert await queue.enqueue_many([]) == []
    assert [each.id for each in backend.stored] == ids
    assert {each.headers["one"] for each in backend.stored} == {"unknown"}
    assert [event.task_id for event in heard.events if isinstance(event, TaskEnqueued)] == ids


@pytest.mark.anyio
@pytest.mark.parametrize("many", [False, True])
async def test_what_is_signed_is_what_the_extensions_made(many: bool) -> None:
    backend, serializer = MemoryBackend(), MsgpackSerializer(keys=[b"k" * 32])
    async with TaskQueue(backend, serializer, extensions=[Marks("one", [])]) as queue:
        if many:
            ids = await queue.enqueue_many([call(add, number, 1) for number in range(201)])
        else:
            ids = [await queue.enqueue(add, 0, 1)]
        again = await queue.retry(await _ended(queue, backend, serializer, ids[0]))
        assert await Worker(backend, serializer).drain() == 1
        assert await queue.result(again, timeout=0) == 1
        assert await queue.result(ids[-1], timeout=0) == len(ids)


async def _ended(
    queue: TaskQueue, backend: MemoryBackend, serializer: MsgpackSerializer, task_id: TaskId[int]
) -> TaskId[int]:
    await Worker(backend, serializer).drain()
    assert (await queue.get_task(task_id)).status.is_final
    return task_id


@pytest.mark.anyio
async def test_a_retry_is_an_enqueue_too() -> None:
    backend, heard = SpyBackend(), Heard()
    async with TaskQueue(backend, extensions=[Marks("one", []), heard]) as queue:
        old = await queue.enqueue(add, 1, 2)
        await finish(backend, 3)
        new = await queue.retry(old)
        assert (await backend.load_task(new)).headers["one"] == "unknown"
    first, second = heard.events
    assert isinstance(first, TaskEnqueued)
    assert isinstance(second, TaskEnqueued)
    assert (first.task_id, first.retry_of) == (old, None)
    assert (second.task_id, second.retry_of) == (new, old)


def _replaced(**changes: Any) -> Callable[[Sequence[Task], Next], Awaitable[Any]]:
    async def replace(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
        return await call_next([each.model_copy(update=changes) for each in tasks])

    return replace


async def _fewer(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
    return await call_next(tasks[1:])


async def _reversed(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
    return await call_next(tasks[::-1])


async def _none(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
    return await call_next(None)  # type: ignore[arg-type]


async def _texts(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
    return await call_next(["a", "b"])  # type: ignore[list-item]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (_replaced(payload=b"x"), "payload of a task differ: an extension may change the headers"),
        (_replaced(queue="other", priority=3), "queue, priority of a task differ"),
        (_replaced(headers={"a": 1}), "Does.around_enqueue: headers: give a dict of str to str"),
        (_replaced(headers={"a": "x" * 9000}), "8,192 bytes"),
        (_replaced(headers=None), "headers: give a dict"),
        (_fewer, "give call_next a list of the same 2 tasks"),
        (_reversed, "id.* of a task differ"),
        (_none, "got NoneType"),
        (_texts, "give tasks .got str"),
    ],
)
async def test_an_extension_may_change_headers_and_nothing_else(what: Any, message: str) -> None:
    backend, heard = SpyBackend(), Heard()
    async with TaskQueue(backend, extensions=[Does(what), heard]) as queue:
        with pytest.raises(ValidationError, match=message):
            await queue.enqueue_many([call(add, 1, 2), call(greet, "ada")])
    assert not backend.stored
    assert not heard.events


async def _never(tasks: Sequence[Task], call_next: Next) -> Any:
    return []


async def _twice(tasks: Sequence[Task], call_next: Next) -> Any:
    await call_next(tasks)
    return await call_next(tasks)


async def _forgets(tasks: Sequence[Task], call_next: Next) -> Any:
    await call_next(tasks)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("what", "message", "stored"),
    [
        (_never, "has not called call_next, so nothing was stored", 0),
        (_twice, "call_next was called before", 1),
        (_forgets, "has to return what call_next returned .got NoneType", 1),
    ],
)
async def test_call_next_is_called_once_and_its_answer_is_returned(
    what: Any, message: str, stored: int
) -> None:
    backend = SpyBackend()
    async with TaskQueue(backend, extensions=[Does(what)]) as queue:
        with pytest.raises(UsageError, match=message):
            await queue.enqueue(add, 1, 2)
    assert len(backend.stored) == stored


@pytest.mark.anyio
async def test_an_error_of_an_extension_refuses_the_tasks() -> None:
    async def refuse(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
        raise PermissionError("not today")

    backend = SpyBackend()
    async with TaskQueue(backend, extensions=[Does(refuse)]) as queue:
        with pytest.raises(PermissionError, match="not today"):
            await queue.enqueue(add, 1, 2)
    assert not backend.stored


@pytest.mark.anyio
async def test_there_is_no_event_where_nothing_was_stored() -> None:
    backend, heard = FaultyBackend(MemoryBackend()), Heard()
    async with TaskQueue(backend, extensions=[heard]) as queue:
        backend.fail("enqueue", error=BackendBusyError("locked"))
        with pytest.raises(BackendBusyError):
            await queue.enqueue(add, 1, 2)
        keyed = queue.options(unique_key="k", queue="mail", priority=3)
        holder = await keyed.enqueue(add, 1, 2)
        assert await keyed.enqueue(add, 3, 4) == holder
    (event,) = heard.events
    assert isinstance(event, TaskEnqueued)
    assert event == TaskEnqueued(
        task_id=holder,
        function="tests.unit.queue_support:add",
        queue="mail",
        priority=3,
        eta=None,
        retry_of=None,
    )


@pytest.mark.anyio
async def test_an_extension_that_fails_on_events_is_logged_once_for_each_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Extension):
        def on_event(self, event: Event) -> None:
            raise SystemExit("no more")

    heard = Heard()
    async with TaskQueue(MemoryBackend(), extensions=[Broken(), Broken(), heard]) as queue:
        await queue.enqueue(add, 1, 2)
        await queue.enqueue(add, 1, 2)
    assert len(heard.events) == 2
    records = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(records) == 2  # one for each instance
    assert "on_event of the extension" in records[0].getMessage()
    assert "Broken has failed for the event TaskEnqueued" in records[0].getMessage()


@pytest.mark.parametrize(
    ("given", "got"),
    [(5, "got int"), ("Heard", "got str"), ([Heard], "got the class Heard"), ([3], "got int")],
)
def test_only_extensions_are_accepted(given: Any, got: str) -> None:
    for make in (TaskQueue, SyncTaskQueue, Worker):
        with pytest.raises(ValidationError, match=f"extensions: .*{got}"):
            make(MemoryBackend(), extensions=given)


def test_the_sync_queue_calls_extensions_in_the_callers_thread(tmp_path: Path) -> None:
    for backend in (MemoryBackend(), SQLiteBackend(tmp_path / "q.db")):
        heard = Heard()
        with SyncTaskQueue(backend, extensions=[Marks("one", []), heard]) as queue:
            CALLER.set("flask")
            task_id = queue.enqueue(add, 1, 2)
            ids = queue.enqueue_many([call(add, 1, 2), call(add, 3, 4)])
            assert queue.drain() == 3
            again = queue.retry(task_id)
            # What `retry` does runs in the queue's own thread.
            assert queue.drain() == 1
            assert queue.result(again, timeout=0) == 3
        stored = [event.task_id for event in heard.events if isinstance(event, TaskEnqueued)]
        assert stored == [task_id, *ids, again]


def test_an_extension_of_a_sync_queue_has_no_event_loop() -> None:
    async def wait(tasks: Sequence[Task], call_next: Next) -> list[TaskId[Any]]:
        await _suspended()
        return await call_next(tasks)

    with (
        SyncTaskQueue(MemoryBackend(), extensions=[Does(wait)]) as queue,
        pytest.raises(UsageError, match="the call is made in a thread without an event loop"),
    ):
        queue.enqueue(add, 1, 2)


class _Once:
    def __await__(self) -> Any:
        yield


async def _suspended() -> None:
    await _Once()


@pytest.mark.anyio
async def test_in_a_transaction_headers_are_added_and_there_is_no_event(tmp_path: Path) -> None:
    heard = Heard()
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path), extensions=[Marks("one", []), heard]) as queue:
        await queue.connect()
        with closing(sqlite3.connect(path)) as connection:
            task_id = await queue.bind(connection).enqueue(add, 1, 2)
            connection.commit()
        with anyio.fail_after(10):
            await Worker(SQLiteBackend(path)).drain()
            assert await queue.result(task_id) == 3
        assert (await _backend_of(queue).load_task(task_id)).headers
    assert not heard.events


def _backend_of(queue: TaskQueue) -> SQLiteBackend:
    backend = queue._backend
    assert isinstance(backend, SQLiteBackend)
    return backend
