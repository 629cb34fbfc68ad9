"""A change is told soon, and a flood of changes is not a flood of notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, Mock

import anyio
import anyio.to_thread
import asyncpg
import pytest

from sitq import TaskQueue, call
from sitq.backends.postgres import PostgresBackend, _sql, _wakeups
from sitq.backends.postgres._wakeups import QUIET, NotifyThrottle, channels_of
from sitq.ids import TaskId
from sitq.models import Outcome
from sitq.protocols import Topic
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    pass


@contextmanager
def heard(schema: str) -> Iterator[list[str]]:
    """The topics of all notifications of a schema, from another connection."""
    import threading

    topics: list[str] = []
    names: dict[str, Topic] = channels_of(schema)
    ready, end = threading.Event(), threading.Event()

    def note(_connection: object, _pid: int, channel: str, text: str) -> None:
        if not text.startswith("test"):
            topics.append(names[channel])

    async def listen() -> None:
        connection = await asyncpg.connect(dsn())
        for channel in names:
            await connection.add_listener(channel, note)
        ready.set()
        await asyncio.to_thread(end.wait)
        await connection.fetch("SELECT 1")  # what was sent before has been heard after this
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    ready.wait(20)
    try:
        yield topics
    finally:
        end.set()
        thread.join()


async def test_a_flood_of_enqueues_is_no_flood_of_notifications() -> None:
    schema = new_schema()
    async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
        with heard(schema) as topics:
            start = anyio.current_time()
            for _ in range(300):
                await queue.enqueue(nothing)
            seconds = anyio.current_time() - start
            await queue.close()
            await queue.connect()
    assert topics
    assert set(topics) == {"tasks"}
    assert len(topics) <= seconds / QUIET + 2


async def test_rare_changes_are_notified_once_each_by_topic() -> None:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    with heard(schema) as topics:
        await backend.enqueue([new_task(), new_task()])
        taken = (await backend.reserve("w", ["default"], 2, 30.0)).tasks
        await anyio.sleep(2 * QUIET)
        await backend.cancel(taken[0].id)
        await anyio.sleep(2 * QUIET)
        await backend.finish([Outcome.success(taken[0].lease, b"")])
        await anyio.sleep(2 * QUIET)
        await backend.finish([Outcome.failure(taken[0].lease, "too late")])
        await anyio.sleep(2 * QUIET)
        await backend.finish([Outcome.success(taken[1].lease, b"")])
        await backend.close()
    assert topics == ["tasks", "cancels", "results", "results"]


async def test_deferred_notifications_are_sent_at_the_close() -> None:
    schema = new_schema()
    with heard(schema) as topics:
        async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
            await queue.enqueue(nothing)
            await queue.enqueue(nothing)
    assert topics == ["tasks", "tasks"]


def test_a_timer_that_ends_early_notifies_as_well() -> None:
    """Too early for the topic, it rings again; what was put off is not forgotten."""
    sent: list[list[str]] = []

    async def fetch(sql: str, parameters: tuple[str, list[str]]) -> None:
        assert sql == _sql.NOTIFY
        sent.append(parameters[1])

    async def main() -> None:
        tasks: list[asyncio.Future[Any]] = []
        driver_loop, pool = Mock(), MagicMock()
        driver_loop.start = lambda work: tasks.append(asyncio.ensure_future(work()))
        pool.lend.return_value.__aenter__.return_value.fetch = fetch
        throttle = NotifyThrottle(driver_loop, pool, "s")
        assert throttle.notify_with(["tasks"]) == (["sitq_s_tasks"], {"tasks"}, set())
        assert throttle.notify_with(["tasks"]) == ([], set(), set())
        throttle.notify_later({"tasks"})
        throttle._end_quiet_time()
        assert tasks == []
        async with asyncio.timeout(20):
            while not tasks:  # noqa: ASYNC110 - set by a timer
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert sent == [["sitq_s_tasks"]]


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notifications do not arrive, as behind a pooler."""
    monkeypatch.setattr(_wakeups, "_TEST_SECONDS", 0.05)
    monkeypatch.setattr(_wakeups.ServerListeners, "_heard", lambda *_: None)


CHANGES: dict[Topic, Callable[[PostgresBackend, Any], Any]] = {
    "tasks": lambda backend, _: backend.enqueue([new_task()]),
    "results": lambda backend, task: backend.finish([Outcome.success(task.lease, b"")]),
    "cancels": lambda backend, task: backend.cancel(task.id),
}


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("topic", CHANGES)
async def test_where_notifications_do_not_arrive_changes_are_seen(topic: Topic) -> None:
    schema = new_schema()
    first, second = (
        PostgresBackend(dsn(), schema=schema, prepared_statements=False) for _ in range(2)
    )
    await first.open()
    await second.open()
    await first.enqueue([new_task()])
    (task,) = (await first.reserve("w", ["default"], 1, 30.0)).tasks
    async with first.listen(topic) as listener:
        await CHANGES[topic](second, task)
        with anyio.fail_after(10):
            await listener.wait()
    await first.close()
    await second.close()


async def test_a_look_finds_nothing_where_nothing_changes() -> None:
    backend = PostgresBackend(dsn(), schema=new_schema())
    await backend.open()
    listeners = backend._open_counter.use().listeners

    async def twice() -> list[bool]:
        return [await listeners._has_changed() for _ in range(2)]

    seen = []
    for _ in range(20):  # other tests of this server may write meanwhile
        seen = await backend._open_counter.use()._driver_loop.run(twice)
        if seen[1] is False:
            break
    assert seen[1] is False
    await backend.close()


async def test_many_calls_at_once_share_statements() -> None:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    async with TaskQueue(backend) as queue:
        ids: list[str] = []

        async def put() -> None:
            ids.append(await queue.enqueue(nothing))

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(put)
        infos = await backend.get_tasks([TaskId(task_id) for task_id in ids])
        moments = {info.enqueued_at for info in infos if info}
        assert len(infos) == 100
        assert len(moments) < 20
        await queue.enqueue_many([call(nothing)])
