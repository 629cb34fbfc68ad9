"""Filters, cursors and moments that are odd but allowed, or forged, on each store."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from sitq import Admin, SQLiteBackend, TaskFilter, TaskQueue, ValidationError, Worker, call, task
from sitq.administration import StatusFilter
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.protocols import Backend
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ENDS = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
OTHER = "01900000-0000-7000-8000-000000000000"
FIELDS: dict[str, Any] = {
    "ids": (OTHER,),
    "queue": "mail",
    "function": "jobs:send",
    "priority": 3,
    "worker": "w",
    "unique_key": "k",
    "retry_of": OTHER,
    "error": "ValueError",
    "enqueued_after": NOW,
    "enqueued_before": NOW,
    "finished_after": NOW,
    "finished_before": NOW,
    "eta_after": NOW,
    "eta_before": NOW,
}


@task
async def add(left: int, right: int) -> int:
    return left + right


@task
async def fail() -> None:
    raise ValueError("no luck")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "postgres":
        schema = new_schema()
        yield PostgresBackend(dsn(), schema=schema)
        query(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    else:
        yield MemoryBackend() if request.param == "memory" else SQLiteBackend(tmp_path / "q.db")


def digest_of(cursor: str) -> int:
    padded = cursor + "=" * (-len(cursor) % 4)
    number: int = json.loads(base64.urlsafe_b64decode(padded))[0]
    return number


def forge(digest: int, *keys: object) -> str:
    return base64.urlsafe_b64encode(json.dumps([digest, *keys]).encode()).decode().rstrip("=")


async def test_a_filter_may_have_every_field_with_every_status(backend: Backend) -> None:
    async with Admin(backend) as admin:
        for status in (None, *get_args(StatusFilter)):
            for left_out in ((), ("ids",), ("worker",), ("ids", "worker")):
                fields = {name: value for name, value in FIELDS.items() if name not in left_out}
                where = TaskFilter(status=status, **fields)
                assert (await admin.list_tasks(where)).items == ()
                assert (await admin.count_tasks(where)).value == 0
                assert (await admin.cancel_tasks(where)).matched == 0


async def test_failed_tasks_are_found_by_id_and_status(backend: Backend) -> None:
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        failed, other = [await queue.enqueue(fail) for _ in range(2)]
        await Worker(backend).drain()
        where = TaskFilter(status="failed", ids=(failed,))
        assert [info.task_id for info in (await admin.list_tasks(where)).items] == [failed]
        assert (await admin.count_tasks(where)).value == 1
        assert (await admin.retry_tasks(where)).done == 1
        assert (await queue.get_task(other)).retried_as is None


async def test_a_forged_cursor_is_refused_or_a_place_in_the_list(backend: Backend) -> None:
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        await queue.enqueue_many([call(add, 1, 2)] * 2)
        by_id = (await admin.list_tasks(limit=1)).cursor or ""
        for text in ("", "x", "\u00e9", "\ud800", "\0", "A" * 100_000, by_id[:-4], by_id * 2):
            with pytest.raises(ValidationError, match="cursor"):
                await admin.list_tasks(cursor=text)
        digest = digest_of(by_id)
        for keys in ([], [5], [None], ["\ud800"], ["\0"], ["a", "b"]):
            with pytest.raises(ValidationError, match="cursor"):
                await admin.list_tasks(cursor=forge(digest, *keys))
        where = TaskFilter(status="pending")
        digest = digest_of((await admin.list_tasks(where, limit=1)).cursor or "")
        for odd in (2**64, -(2**64), 1.0, True, None):
            for place in (1, 2, 3):
                parts: list[object] = ["mail", 0, 0, 0]
                parts[place] = odd
                with pytest.raises(ValidationError, match="cursor"):
                    await admin.list_tasks(where, cursor=forge(digest, *parts))
        for eta in (2**63 - 1, -(2**63)):
            cursor = forge(digest, "zzz", 2**15 - 1, eta, 0)
            assert (await admin.list_tasks(where, cursor=cursor)).items == ()
            assert (await admin.cancel_tasks(where, cursor=cursor)).matched == 0


async def test_tasks_are_postponed_to_the_ends_of_time(backend: Backend) -> None:
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        ids = await queue.enqueue_many([call(add, 1, 2)] * 2)
        for moment in ENDS:
            assert (
                await admin.list_tasks(TaskFilter(eta_after=moment, eta_before=moment))
            ).items == ()
            await admin.pause_queue("mail", until=moment)
            await admin.postpone_tasks(TaskFilter(), moment)
            for where in (TaskFilter(), TaskFilter(status="pending")):
                first = await admin.list_tasks(where, limit=1)
                second = await admin.list_tasks(where, limit=1, cursor=first.cursor)
                assert {info.task_id for info in first.items + second.items} == set(ids)
        (eta, _) = [info.eta for info in (await admin.list_tasks()).items]
        assert ENDS[1] - eta < timedelta(seconds=1)


async def test_a_task_that_moves_in_the_list_is_changed_once(backend: Backend) -> None:
    """A change by eta or priority may put a task behind the place that the operation is at."""
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        await queue.enqueue_many([call(add, 1, 2)] * 1100)
        where = TaskFilter(status="pending")
        lower = await admin.set_priority(where, -5)
        assert (lower.matched, lower.done, lower.skipped) == (1100, 1100, ())
        eta = datetime.now(UTC) + timedelta(hours=1)
        later = await admin.postpone_tasks(where, eta)
        assert (later.matched, later.done, later.skipped) == (1100, 1100, ())
        again = await admin.postpone_tasks(where, eta)
        assert (again.matched, again.done, again.skipped) == (0, 0, ())
