"""What is odd about one row, or was written by hand, harms that row and no other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import pytest

from sitq import BackendError, BackendFormatError, TaskStatus
from sitq._system_errors import LOST_ATTEMPT, NO_ATTEMPT_LEFT
from sitq.backends._operations import ReserveRequest
from sitq.backends.postgres import PostgresBackend
from sitq.backends.postgres._operations import reserved_before
from sitq.backends.postgres._schema import migrations
from sitq.models import Outcome
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def store() -> AsyncIterator[tuple[PostgresBackend, str]]:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    yield backend, schema
    await backend.close()


async def ask(sql: str) -> list[tuple[object, ...]]:
    return await anyio.to_thread.run_sync(query, sql)


UNREADABLE = [
    "retry = 'no json'",
    "headers = '[1]'",
    "headers = repeat('[', 100000)",
    "timeout = -1",
    "timeout = 'NaN'",
    "timeout = -1, result_ttl = 'NaN'",
    "id = 'no id'",
    "id = ''",
    "eta = '-infinity'",
    "eta = '4000-01-01 BC'",
    "enqueued_at = 'infinity'",
    "enqueued_at = '200000-01-01'",
    "enqueued_at = '100-01-01 BC'",
]
SPENT = [
    "epoch = 5, max_attempts = 1, attempts = 1",
    "epoch = 9223372036854775807",
    "epoch = 2147483647, attempts = 2147483647",
]


@pytest.mark.parametrize("change", [*UNREADABLE, *SPENT])
async def test_a_row_that_cannot_start_is_failed_and_its_neighbours_run(change: str) -> None:
    async with store() as (backend, schema):
        first, odd, last = await backend.enqueue([new_task() for _ in range(3)])
        await ask(f"UPDATE {schema}.tasks SET {change} WHERE id = '{odd}'")
        taken = (await backend.reserve("w", ["default"], 5, 30.0)).tasks
        assert [task.id for task in taken] == [first, last]
        ends = await ask(f"SELECT status, error FROM {schema}.tasks WHERE status <> 'in_progress'")
        ((status, error),) = ends
        assert status == "failed"
        assert str(error).startswith("BackendFormatError: ")


@pytest.mark.parametrize("change", UNREADABLE)
async def test_a_row_that_cannot_start_is_failed_too_when_the_answer_was_lost(change: str) -> None:
    async with store() as (backend, schema):
        first, odd, last = await backend.enqueue([new_task() for _ in range(3)])
        await backend.reserve("w", ["default"], 5, 30.0)
        await ask(f"UPDATE {schema}.tasks SET {change} WHERE id = '{odd}'")
        ((ticket,), *_) = await ask(f"SELECT ticket FROM {schema}.tasks")
        assert isinstance(ticket, int)
        wish = ReserveRequest("w", ("default",), 5, 30.0, ticket)
        again = await backend._open_counter.use().database.read(reserved_before, (wish,))
        assert again is not None
        assert [task.id for task in again[0].tasks] == [first, last]
        statuses = await ask(f"SELECT status FROM {schema}.tasks ORDER BY status")
        assert statuses == [("failed",), ("in_progress",), ("in_progress",)]


async def test_a_row_that_is_never_due_blocks_no_reservation() -> None:
    async with store() as (backend, schema):
        never, one = await backend.enqueue([new_task() for _ in range(2)])
        await ask(f"UPDATE {schema}.tasks SET eta = 'infinity' WHERE id = '{never}'")
        first = await backend.reserve("w", ["default"], 5, 30.0)
        assert [task.id for task in first.tasks] == [one]
        assert first.wait is not None
        assert 1e9 < first.wait < 1e12
        with pytest.raises(BackendFormatError, match="none of sitq's"):
            await backend.get_tasks([never])
        (info,) = await backend.get_tasks([one])
        assert info is not None


async def test_a_row_of_too_many_crashes_is_taken_back_with_its_neighbours() -> None:
    async with store() as (backend, schema):
        ids = await backend.enqueue([new_task() for _ in range(2)])
        await backend.reserve("w", ["default"], 5, 0.0)
        await ask(f"UPDATE {schema}.tasks SET crashes = 2147483647 WHERE id = '{ids[0]}'")
        assert (await backend.sweep(3)).reclaimed == 2
        infos = await backend.get_tasks(ids)
        assert [info and info.status for info in infos] == [TaskStatus.FAILED, TaskStatus.PENDING]


async def test_a_row_that_cannot_be_read_is_called_so_without_its_values() -> None:
    async with store() as (backend, schema):
        (task_id,) = await backend.enqueue([new_task()])
        await ask(f"UPDATE {schema}.tasks SET retry = 's3cret' WHERE id = '{task_id}'")
        with pytest.raises(BackendFormatError, match="none of sitq's") as error:
            await backend.load_task(task_id)
        assert "s3cret" not in str(error.value)


async def test_an_id_that_exists_is_refused_without_quoting_the_row() -> None:
    async with store() as (backend, _):
        task = new_task(payload=b"s3cret")
        await backend.enqueue([task])
        for tasks in ([task], [new_task(), task], [new_task(unique_key="k"), task]):
            with pytest.raises(BackendError, match="duplicate key") as error:
                await backend.enqueue(tasks)
            assert task.id not in str(error.value)
        assert len((await backend.reserve("w", ["default"], 9, 30.0)).tasks) == 1


@pytest.mark.parametrize(
    "differing",
    [{}, {"function": "tests:other"}, {"queue": "b"}, {"priority": 4}, {"result_ttl": 6.0}],
    ids=["alike", "function", "queue", "priority", "retention"],
)
@pytest.mark.parametrize("count", [1, 3])
async def test_tasks_come_back_as_they_were_and_in_their_order(
    differing: dict[str, Any], count: int
) -> None:
    async with store() as (backend, _):
        common = {"queue": "a", "priority": 3, "result_ttl": 5.0}
        tasks = [new_task(**common, payload=bytes([number])) for number in range(count)]
        tasks.append(new_task(**common | differing, payload=b""))
        assert await backend.enqueue(tasks) == [task.id for task in tasks]
        for task in tasks:
            stored = await backend.load_task(task.id)
            assert stored.eta is not None
            assert stored.model_copy(update={"eta": None}) == task
        taken = (await backend.reserve("w", ["a", "b"], 9, 30.0)).tasks
        in_order = sorted(tasks, key=lambda task: -task.priority)
        assert [task.id for task in taken] == [task.id for task in in_order]


async def test_a_check_that_fails_does_not_show_the_row() -> None:
    async with store() as (backend, schema):
        await ask(f"ALTER TABLE {schema}.tasks ADD CHECK (length(payload) < 3)")
        with pytest.raises(BackendError, match="violates check constraint") as error:
            await backend.enqueue([new_task(payload=b"s3cret")])
        each: BaseException | None = error.value
        while each is not None:
            assert "s3cret" not in str(each)
            each = each.__cause__


async def test_a_text_with_a_nul_is_stored_legibly() -> None:
    async with store() as (backend, _):
        await backend.enqueue([new_task(), new_task()])
        one, two = (await backend.reserve("w", ["default"], 2, 30.0)).tasks
        ends = [Outcome.failure(one.lease, "a\0b", "c\0d"), Outcome.success(two.lease, b"\0")]
        assert await backend.finish(ends) == [True, True]
        results = await backend.get_results([one.id, two.id])
        first, second = results[one.id], results[two.id]
        assert first is not None
        assert second is not None
        assert (first.error, first.traceback) == ("a\\x00b", "c\\x00d")
        assert second.value == b"\0"


async def test_the_server_holds_the_rules_of_a_row_too() -> None:
    async with store() as (backend, schema):
        (task_id,) = await backend.enqueue([new_task()])
        for change in (
            "status = 'done'",
            "status = 'success'",
            "status = 'in_progress'",
            "attempts = 1",
            "priority = 101",
            "cancel_requested = true",
            "finished_at = now()",
        ):
            with pytest.raises(Exception, match="check constraint"):
                await ask(f"UPDATE {schema}.tasks SET {change} WHERE id = '{task_id}'")


@pytest.mark.parametrize("prepared", [True, False])
async def test_cancelled_callers_leave_no_transaction_open(prepared: bool) -> None:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema, prepared_statements=prepared)
    await backend.open()

    async def work() -> None:
        await backend.enqueue([new_task()])
        await backend.reserve("w", ["default"], 1, 30.0)
        await backend.sweep(3)

    for steps in range(12):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        # Whoever locks the whole table waits for all that has it locked.
        await ask(f"DO 'BEGIN LOCK TABLE {schema}.tasks IN ACCESS EXCLUSIVE MODE; END'")
    await backend.close()


async def test_the_functions_write_the_same_texts_of_errors_as_the_clients() -> None:
    scripts = "".join(script for _, script in migrations())
    texts = set(re.findall(r"'(\w+Error: [^']*)'", scripts))
    assert texts == {NO_ATTEMPT_LEFT, LOST_ATTEMPT}
