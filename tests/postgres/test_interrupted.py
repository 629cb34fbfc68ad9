"""What comes at the wrong moment: errors after a commit, cancellations, closing."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sitq import TaskQueue, UsageError
from sitq.backends.postgres import PostgresBackend
from sitq.backends.postgres._operations import PgTransaction
from sitq.backends.postgres._wakeups import NotifyThrottle
from sitq.models import Outcome
from tests.postgres.samples import at_rest, new_task, opened
from tests.postgres.servers import dsn, new_schema, query
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Exception]], list[str]]:
    """Have the next statement raise once its transaction has been committed."""
    real = PgTransaction.rows

    def break_next(kind: type[Exception]) -> list[str]:
        broken: list[str] = []

        async def rows(self: PgTransaction, sql: str, *parameters: Any) -> list[Any]:
            answer = await real(self, sql, *parameters)
            if not broken:
                broken.append(sql)
                raise kind
            return answer

        monkeypatch.setattr(PgTransaction, "rows", rows)
        return broken

    return break_next


@pytest.mark.parametrize("kind", [MemoryError, ValueError])
async def test_what_was_committed_is_the_answer_whatever_is_raised_after_it(
    broken: Callable[[type[Exception]], list[str]], kind: type[Exception]
) -> None:
    schema = new_schema()
    backend = await opened(dsn(), schema)
    plain, keyed = new_task(queue="q"), new_task(queue="q", unique_key="key")
    done = broken(kind)
    assert await backend.enqueue([plain]) == [plain.id]
    assert len(done) == 1
    done.clear()
    assert await backend.enqueue([keyed]) == [keyed.id]
    done.clear()
    taken = (await backend.reserve("w", ["q"], 5, 30.0)).tasks
    assert [task.id for task in taken] == [plain.id, keyed.id]
    done.clear()
    assert await backend.finish([Outcome.success(task.lease, b"v") for task in taken]) == [
        True,
        True,
    ]
    (third,) = await backend.enqueue([new_task(queue="q")])
    done.clear()
    assert await backend.cancel(third)
    assert len(done) == 1
    await backend.close()
    statuses = await anyio.to_thread.run_sync(
        query, f"SELECT status, epoch FROM {schema}.tasks WHERE queue = 'q' ORDER BY seq"
    )
    assert statuses == [("success", 1), ("success", 1), ("cancelled", 0)]


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_what_is_connected_goes_on() -> None:
    backend = await opened(dsn())
    await at_rest(backend)
    task = new_task(queue="q")
    with no_descriptors_left():
        assert await backend.enqueue([task]) == [task.id]
        (taken,) = (await backend.reserve("w", ["q"], 1, 30.0)).tasks
        assert await backend.finish([Outcome.success(taken.lease, b"v")]) == [True]
    await backend.close()


async def test_a_change_is_acknowledged_although_its_listeners_cannot_be_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    backend = await opened(dsn())
    monkeypatch.setattr(NotifyThrottle, "notify_later", fail)
    task = new_task()
    assert await backend.enqueue([task]) == [task.id]
    monkeypatch.undo()
    assert (await backend.get_tasks([task.id]))[0] is not None
    await backend.close()


@pytest.mark.parametrize("script", ["BEGIN", "BEGIN; SAVEPOINT x; SELECT 1 / 0"])
async def test_a_connection_left_in_a_transaction_is_replaced(script: str) -> None:
    schema = new_schema()
    backend = await opened(dsn(), schema)
    await at_rest(backend)
    session = backend._open_counter.use()

    async def leave() -> int:
        async with session.pool.lend() as link:
            process = int((await link.fetch("SELECT pg_backend_pid()"))[0][0])
            try:
                await link._connection.execute(script)
            except Exception:
                assert "1 / 0" in script
        return process

    process = await session._driver_loop.run(leave)
    task = new_task()
    assert await backend.enqueue([task]) == [task.id]
    with anyio.fail_after(20):
        asked = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {process}"
        while await anyio.to_thread.run_sync(query, asked) != [(0,)]:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    stored = f"SELECT count(*) FROM {schema}.tasks WHERE id = '{task.id}'"
    assert await anyio.to_thread.run_sync(query, stored) == [(1,)]
    await backend.close()


def test_those_who_clean_up_at_the_end_of_asyncio_run_are_answered() -> None:
    """It cancels every task of the loop at once, those of the driver too."""
    schema, where = new_schema(), dsn()
    answers: list[list[bool]] = []
    tasks: list[asyncio.Task[None]] = []

    async def hold(backend: PostgresBackend, outcome: Outcome) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                answers.append(await backend.finish([outcome]))

    async def main() -> None:
        backend = PostgresBackend(where, schema=schema)
        await backend.open()
        await backend.enqueue([new_task() for _ in range(20)])
        taken = (await backend.reserve("w", ["default"], 20, 30.0)).tasks
        tasks.extend(
            asyncio.create_task(hold(backend, Outcome.release(task.lease))) for task in taken
        )
        await asyncio.sleep(0)

    asyncio.run(main())
    assert answers == [[True]] * 20
    assert query(f"SELECT count(*) FROM {schema}.tasks WHERE status = 'pending'") == [(20,)]


def test_a_statement_under_way_at_the_end_of_asyncio_run_has_its_true_answer() -> None:
    schema, where = new_schema(), dsn()
    answers: list[list[str]] = []
    tasks: list[asyncio.Task[None]] = []

    async def enqueue(backend: PostgresBackend) -> None:
        call = asyncio.create_task(backend.enqueue([new_task()]))
        try:
            await asyncio.sleep(100)
        finally:
            # Only the driver's task is cancelled; this one waits for it.
            with anyio.CancelScope(shield=True):
                answers.append(list(await backend.enqueue([new_task()])))
                with anyio.move_on_after(10):
                    await asyncio.wait({call})

    async def main() -> None:
        backend = PostgresBackend(where, schema=schema)
        await backend.open()
        tasks.extend(asyncio.create_task(enqueue(backend)) for _ in range(5))
        await asyncio.sleep(0.001)

    asyncio.run(main())
    assert len(answers) == 5
    stored = {row[0] for row in query(f"SELECT id FROM {schema}.tasks")}
    assert {task_id for (task_id,) in answers} <= stored


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("call", ["enqueue", "listen"])
def test_what_asyncio_run_cancels_before_its_first_step_blocks_no_call(
    call: str, steps: int
) -> None:
    """The driver's tasks begin a moment after the call that needs them."""
    schema, where = new_schema(), dsn()
    ends: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def use(backend: PostgresBackend) -> None:
        if call == "enqueue":
            await backend.enqueue([new_task()])
        else:
            async with backend.listen("results"):
                pass

    async def use_twice(backend: PostgresBackend) -> None:
        try:
            await use(backend)
            await asyncio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(20):
                await use(backend)
            ends.append("well")

    async def main() -> None:
        backend = PostgresBackend(where, schema=schema)
        await backend.open()
        tasks.append(asyncio.create_task(use_twice(backend)))
        for _ in range(steps):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert ends == ["well"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", range(6))
async def test_every_call_ends_when_closing_meets_cancellations(seed: int) -> None:
    """And no connection is left."""
    luck = random.Random(seed)
    schema = new_schema()
    name = f"closing-{schema}"
    where = f"{dsn()}{'&' if '?' in dsn() else '?'}application_name={name}"
    threads = threading.active_count()

    async def later(work: Callable[[], Any]) -> object:
        for _ in range(luck.randrange(60)):
            await asyncio.sleep(0)
        return await work()

    for _ in range(8):
        backend = PostgresBackend(where, schema=schema, pool_size=2)
        queue = TaskQueue(backend)
        await queue.connect()
        calls = [asyncio.create_task(later(partial(queue.enqueue, add, 1, 2))) for _ in range(8)]
        calls += [asyncio.create_task(later(queue.close)) for _ in range(2)]
        for call in luck.sample(calls, 4):
            for _ in range(luck.randrange(30)):
                await asyncio.sleep(0)
            call.cancel()
        with anyio.fail_after(20):
            ends = await asyncio.gather(*calls, return_exceptions=True)
        for end in ends:
            assert isinstance(end, str | UsageError | asyncio.CancelledError | None), repr(end)
        with anyio.fail_after(20):
            await queue.close()
    gc.collect()
    asked = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    with anyio.fail_after(20):
        while await anyio.to_thread.run_sync(query, asked) != [(0,)]:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert threading.active_count() <= threads + 2  # those of anyio's for blocking calls


async def test_a_call_after_the_closing_raises_usage_error() -> None:
    backend = await opened(dsn())
    database = backend._open_counter.use().database
    await backend.close()
    with pytest.raises(UsageError, match="closed during this call"):
        await database.write(None, ())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not open"):
        await backend.enqueue([new_task()])
