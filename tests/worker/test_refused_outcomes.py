"""An outcome that the store can never keep ends its attempt with a plain error."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sitq import RetryPolicy, SQLiteBackend, TaskQueue, TaskStatus, Worker, call
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.errors import BackendValueError
from sitq.protocols import Backend
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

POISON = "poison"
SQLITE = """
CREATE TRIGGER choosy BEFORE UPDATE ON tasks WHEN NEW.error LIKE '%poison%'
    OR instr(NEW.value, 'poison') BEGIN SELECT RAISE(ABORT, 'never'); END
"""
POSTGRES = """
ALTER TABLE S.tasks ADD CHECK (error NOT LIKE '%poison%'), ADD CHECK (value NOT LIKE '%poison%')
"""


class Choosy(MemoryBackend):
    """A store in memory that can keep no such word."""

    async def finish(self, outcomes: Any) -> list[bool]:
        if any(POISON in f"{outcome.error} {outcome.value}" for outcome in outcomes):
            raise BackendValueError("finish: never")
        return await super().finish(outcomes)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """A store that refuses some outcomes for good."""
    backend: Backend = Choosy()
    path, schema = tmp_path / "q.db", new_schema()
    if request.param == "sqlite":
        backend = SQLiteBackend(path)
    elif request.param == "postgres":
        backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    if request.param == "sqlite":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(SQLITE)
    elif request.param == "postgres":
        await anyio.to_thread.run_sync(query, POSTGRES.replace("S.", f"{schema}."))
    yield backend
    await backend.close()


async def give(text: str) -> str:
    return text


async def fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("function", "text"),
    [(give, "BackendValueError: the store cannot keep the result of this attempt"),
     (fail, "BackendValueError: the store cannot keep the error of this attempt")],
)  # fmt: skip
async def test_it_is_a_failure_and_the_others_of_its_batch_are_as_they_were(
    backend: Backend, function: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskQueue(backend) as queue:
        calls = [call(give, str(number)) for number in range(20)]
        calls[7] = call(function, POISON)
        ids = await queue.enqueue_many(calls)
        with anyio.fail_after(20):
            assert await Worker(backend).drain() == 20
        results = [await queue.get_result(task_id, 0) for task_id in ids]
    statuses = [result and result.status for result in results]
    assert statuses.count(TaskStatus.SUCCESS) == 19
    refused = results[7]
    assert refused is not None
    assert (refused.status, refused.error) == (TaskStatus.FAILED, text)
    assert refused.traceback is None
    (record,) = [each for each in caplog.records if "plain one" in each.getMessage()]
    assert (record.levelno, str(ids[7]) in record.getMessage()) == (logging.ERROR, True)
    assert POISON not in record.getMessage().replace("'%poison%'", "")


async def test_a_retry_stays_one(backend: Backend) -> None:
    Later.runs = 0
    policy = RetryPolicy(max_attempts=3, delay=0.0, jitter=0)
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(retry=policy).enqueue(fail_at_first)
        with anyio.fail_after(20):
            await Worker(backend).drain()
        result = await queue.get_result(task_id, 0)
    assert result is not None
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 2)


class Later:
    runs = 0


async def fail_at_first() -> None:
    Later.runs += 1
    if Later.runs == 1:
        raise ValueError(POISON)


async def test_a_store_that_refuses_the_plain_one_as_well_is_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Closed(MemoryBackend):
        refusals = 6

        async def finish(self, outcomes: Any) -> list[bool]:
            self.refusals -= 1
            if self.refusals >= 0:
                raise BackendValueError("finish: never")
            return await super().finish(outcomes)

    backend = Closed()
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(give, "text")
        with anyio.fail_after(20):
            assert await Worker(backend).drain() == 1
        result = await queue.get_result(task_id, 0)
    assert result is not None
    assert result.error is not None
    assert result.error.startswith("BackendValueError")
    assert caplog.text.count("will try again") == 1
