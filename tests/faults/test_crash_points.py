"""A process that dies at a named point leaves exactly the state before or after its transaction."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import _schema, _sql
from tests.faults import programs
from tests.faults.breaking import point
from tests.faults.crashes import (
    AGAIN,
    LOOPS,
    NEW,
    ONCE,
    RUNNING,
    Crash,
    State,
    alternating,
    die,
    fill,
    finish_the_work,
    reserve,
    states,
)
from tests.faults.processes import ROOT, Processes, query


@pytest.fixture(params=LOOPS)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path)
    yield processes
    processes.kill_all()


CRASHES = [
    Crash("enqueue, before the commit", (), "enqueuer", "commit", _sql._INSERT_COLUMNS, [], []),
    Crash(
        "enqueue, after the commit",
        (), "enqueuer", "committed", _sql._INSERT_COLUMNS, [NEW] * 3, [ONCE] * 3,
    ),
    Crash(
        "reserve, between its statements",
        [programs.quick] * 3, "worker", "at", _sql.INSERT_LEASES, [NEW] * 3, [ONCE] * 3,
    ),
    Crash(
        "reserve, before the commit",
        [programs.quick] * 3, "worker", "commit", _sql.INSERT_LEASES, [NEW] * 3, [ONCE] * 3,
    ),
    Crash(
        "reserve, after the commit",
        [programs.quick] * 3, "worker", "committed", _sql.INSERT_LEASES, [RUNNING] * 3, [AGAIN] * 3,
    ),
    Crash(
        "success, before the commit",
        [programs.quick], "worker", "commit", _sql.SUCCEED_ALIKE, [RUNNING], [AGAIN],
    ),
    Crash(
        "success, after the commit",
        [programs.quick], "worker", "committed", _sql.SUCCEED_ALIKE, [ONCE], [ONCE],
    ),
    Crash(
        "failure, before the commit",
        [programs.fail], "worker", "commit", _sql.SET_FINAL, [RUNNING], [("failed", 2, 1, 1)],
    ),
    Crash(
        "failure, after the commit",
        [programs.fail], "worker", "committed", _sql.SET_FINAL,
        [("failed", 1, 1, 0)], [("failed", 1, 1, 0)],
    ),
    Crash(
        "retry, before the commit",
        [programs.fail_once], "worker", "commit", _sql.SET_RETRY,
        [RUNNING], [("success", 3, 2, 1)],
    ),
    Crash(
        "retry, after the commit",
        [programs.fail_once], "worker", "committed", _sql.SET_RETRY,
        [("pending", 1, 1, 0)], [("success", 2, 2, 0)],
    ),
    Crash(
        "cancel, before the commit",
        [programs.quick], "canceller", "commit", _sql.SET_FINAL, [NEW], [ONCE],
    ),
    Crash(
        "cancel, after the commit",
        [programs.quick], "canceller", "committed", _sql.SET_FINAL,
        [("cancelled", 0, 0, 0)], [("cancelled", 0, 0, 0)],
    ),
]  # fmt: skip


# A commit happens in the database thread, whatever the loop: one loop each does for a short run.
CASES = alternating(CRASHES)


@pytest.mark.parametrize(
    ("processes", "crash"), CASES, indirect=["processes"], ids=[f"{a}, {b.name}" for a, b in CASES]
)
def test_a_transaction_is_whole_or_has_never_been(processes: Processes, crash: Crash) -> None:
    if crash.functions:
        fill(processes, *crash.functions)
    die(processes, crash.role, crash.place, crash.text)
    assert states(processes.database) == crash.found
    assert finish_the_work(processes) == crash.after


@pytest.mark.parametrize(
    ("place", "flag", "after"),
    [("commit", 0, ("success", 2, 1, 1)), ("committed", 1, ("cancelled", 1, 0, 1))],
)
def test_a_running_task_is_asked_to_end_or_has_never_been(
    processes: Processes, place: str, flag: int, after: State
) -> None:
    """Once the request is committed, the task never starts again, whatever dies."""
    fill(processes, programs.quick)
    reserve(processes, 1)
    die(processes, "canceller", place, _sql.REQUEST_CANCEL)
    assert states(processes.database) == [RUNNING]
    assert query(processes.database, "SELECT cancelled FROM leases") == [(flag,)]
    assert finish_the_work(processes) == [after]


@pytest.mark.parametrize("place", ["commit", "committed"])
def test_a_sweep_moves_all_that_it_moves_or_nothing(processes: Processes, place: str) -> None:
    """It reclaims one task, expires another and prunes a third."""

    async def main() -> None:
        soon = datetime.now(UTC) + timedelta(minutes=5)
        async with TaskQueue(SQLiteBackend(processes.database)) as queue:
            await queue.options(priority=9, result_ttl=60).enqueue(programs.quick)
            await Worker(SQLiteBackend(processes.database)).drain()
            await queue.options(priority=8).enqueue(programs.quick)
            await queue.options(expires_at=soon).enqueue(programs.quick)

    anyio.run(main)
    reserve(processes, 1)
    before = [ONCE, RUNNING, NEW]
    assert states(processes.database) == before
    die(processes, "sweeper", place, _sql.RECLAIM, ahead=3600.0)
    swept = [("pending", 1, 0, 1), ("expired", 0, 0, 0)]
    assert states(processes.database) == (before if place == "commit" else swept)
    expired = ONCE if place == "commit" else ("expired", 0, 0, 0)  # a minute is not five
    assert finish_the_work(processes)[-2:] == [AGAIN, expired]


LATEST = _schema.migrations()[-1][0]
BIRTHS = [
    ("connect", "", 0),
    ("at", "PRAGMA journal_mode", 0),
    ("at", "PRAGMA synchronous", 0),
    ("at", "CREATE TABLE tasks", 0),
    ("at", "CREATE TABLE leases", 0),
    ("at", "PRAGMA user_version =", 0),
    ("at", "PRAGMA application_id =", 0),
    ("commit", "CREATE TABLE leases", 0),
    ("committed", "CREATE TABLE leases", LATEST),
]


SCHEMA = "SELECT sql FROM sqlite_schema ORDER BY name"


@pytest.mark.parametrize(("place", "text", "version"), BIRTHS)
def test_a_new_file_has_its_whole_schema_or_nothing(
    tmp_path: Path, place: str, text: str, version: int
) -> None:
    """On one loop only: a file is opened whole in the database thread."""
    processes = Processes("asyncio", tmp_path)
    die(processes, "enqueuer", place, text)
    assert processes.database.exists()
    assert query(processes.database, "PRAGMA integrity_check") == [("ok",)]
    assert query(processes.database, "PRAGMA user_version") == [(version,)]
    assert query(processes.database, "PRAGMA application_id") == [
        (_schema.APPLICATION_ID if version else 0,)
    ]
    schema = query(processes.database, SCHEMA)
    assert processes.start("enqueuer").popen.wait(60) == 0
    assert schema == (query(processes.database, SCHEMA) if version else [])
    assert states(processes.database) == [NEW] * 3
    assert finish_the_work(processes) == [ONCE] * 3


MIGRATE = """
import sys, anyio
from sitq import SQLiteBackend
from sitq.backends.sqlite import _schema, _sql
from tests.faults import breaking

script = "ALTER TABLE leases ADD COLUMN colour TEXT; CREATE INDEX colours ON leases (colour);"
first = _schema.migrations()
later = (*first, (len(first) + 1, script))
_schema.migrations = lambda: later
breaking.arm(print)
anyio.run(SQLiteBackend(sys.argv[1]).open)
"""


@pytest.mark.parametrize(
    ("place", "text", "version"),
    [
        ("at", "CREATE INDEX colours", LATEST),
        ("at", "PRAGMA user_version =", LATEST),
        ("commit", "ALTER TABLE", LATEST),
        ("committed", "ALTER TABLE", LATEST + 1),
    ],
)
def test_an_older_store_is_migrated_whole_or_not_at_all(
    tmp_path: Path, place: str, text: str, version: int
) -> None:
    processes = Processes("asyncio", tmp_path)
    fill(processes, programs.quick)
    done = subprocess.run(
        [sys.executable, "-c", MIGRATE, str(processes.database)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **point("die", place, text)},
        timeout=100,
        check=False,
    )
    assert done.returncode == 9
    assert states(processes.database) == [NEW]
    with closing(sqlite3.connect(processes.database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(leases)")]
        assert columns.count("colour") == version - LATEST
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MIGRATE, str(processes.database)]
    assert subprocess.run(command, env=environment, timeout=30, check=False).returncode == 0
    assert query(processes.database, "PRAGMA user_version") == [(LATEST + 1,)]
    assert states(processes.database) == [NEW]
