"""Lists are whole though each call looks at a few rows only."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.administration import AdminBackend, StatusFilter, TaskFilter
from sitq.backends.postgres import PostgresBackend
from sitq.backends.postgres import _admin as postgres_admin
from sitq.backends.sqlite import _admin as sqlite_admin
from sitq.models import Outcome
from sitq.testing import FakeClock
from sitq.testing._conformance._suite import new_task
from tests.postgres.servers import dsn, new_schema

pytestmark = pytest.mark.anyio


def backend_of(kind: str, folder: Path, clock: FakeClock) -> AdminBackend:
    if kind == "sqlite":
        return SQLiteBackend(folder / "q.db", clock=clock)
    return PostgresBackend(dsn(), schema=new_schema(), clock=clock)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_pages_have_each_task_once_where_most_rows_do_not_match(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may then be empty and have a cursor."""
    for module in (sqlite_admin, postgres_admin):
        monkeypatch.setattr(module, "MAX_SCANNED_ROWS", 4)
    clock = FakeClock()
    backend = backend_of(kind, tmp_path, clock)
    await backend.open()
    tasks = [
        new_task(
            queue="abc"[number % 3],
            priority=number % 2,
            eta=clock.now() + timedelta(seconds=number % 5 - 2),
            function="m:rare" if number % 13 == 0 else "m:common",
        )
        for number in range(60)
    ]
    await backend.enqueue(tasks)
    taken = (await backend.reserve("worker", ("a",), 6, 30.0)).tasks
    await backend.finish([Outcome.failure(task.lease, "ValueError: no") for task in taken])
    statuses: list[StatusFilter | None] = [None, "pending", "due", "scheduled", "failed"]
    for status in statuses:
        for function in (None, "m:rare"):
            where = TaskFilter(status=status, function=function)
            whole = await every_page(backend, where, 1000)
            for limit in (1, 3):
                assert await every_page(backend, where, limit) == whole
            assert len(set(whole)) == len(whole)
            count = await backend.count_tasks(where, 1000, 60.0)
            assert (count.value, count.exact) == (len(whole), True)
    await backend.close()


async def every_page(backend: AdminBackend, where: TaskFilter, limit: int) -> list[str]:
    found: list[str] = []
    cursor = None
    for _ in range(200):
        page = await backend.list_tasks(where, limit, cursor)
        assert len(page.items) <= limit
        assert page.scanned_to is None or page.cursor is not None
        found += [info.task_id for info in page.items]
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError(f"the list of {where} has no end")
