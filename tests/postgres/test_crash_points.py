"""A process that dies at a named point leaves exactly the state before or after its statement.

A unit of work is one statement: what the server has begun it ends, though nobody waits for it any
more. Where several statements are one transaction, nothing counts until the commit.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from sitq import TaskQueue
from sitq.backends.postgres import _schema, _sql
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
from tests.faults.places import backend_at
from tests.faults.processes import ROOT, Processes, query

LONG = "SITQ_SOAK" in os.environ


@pytest.fixture(params=LOOPS)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes on one of the two loops."""
    processes = Processes(request.param, tmp_path, "postgres")
    yield processes
    processes.kill_all()


FAILED: State = ("failed", 1, 1, 0)
CRASHES = [
    Crash(
        "enqueue, before it is asked",
        (), "enqueuer", "at", _sql.INSERT_ALIKE, [], [],
    ),
    Crash(
        "enqueue, when it is answered",
        (), "enqueuer", "answered", _sql.INSERT_ALIKE, [NEW] * 3, [ONCE] * 3,
    ),
    Crash(
        "reserve, before it is asked",
        [programs.quick] * 3, "worker", "at", _sql.RESERVE, [NEW] * 3, [ONCE] * 3,
    ),
    Crash(
        "reserve, when it is answered",
        [programs.quick] * 3, "worker", "answered", _sql.RESERVE, [RUNNING] * 3, [AGAIN] * 3,
    ),
    Crash(
        "success, before it is asked",
        [programs.quick], "worker", "at", _sql.SUCCEED, [RUNNING], [AGAIN],
    ),
    Crash(
        "success, when it is answered",
        [programs.quick], "worker", "answered", _sql.SUCCEED, [ONCE], [ONCE],
    ),
    Crash(
        "failure, before it is asked",
        [programs.fail], "worker", "at", _sql.FINISH, [RUNNING], [("failed", 2, 1, 1)],
    ),
    Crash(
        "failure, when it is answered",
        [programs.fail], "worker", "answered", _sql.FINISH, [FAILED], [FAILED],
    ),
    Crash(
        "retry, before it is asked",
        [programs.fail_once], "worker", "at", _sql.FINISH, [RUNNING], [("success", 3, 2, 1)],
    ),
    Crash(
        "retry, when it is answered",
        [programs.fail_once], "worker", "answered", _sql.FINISH,
        [("pending", 1, 1, 0)], [("success", 2, 2, 0)],
    ),
    Crash(
        "cancel, before it is asked",
        [programs.quick], "canceller", "at", _sql.CANCEL, [NEW], [ONCE],
    ),
    Crash(
        "cancel, when it is answered",
        [programs.quick], "canceller", "answered", _sql.CANCEL,
        [("cancelled", 0, 0, 0)], [("cancelled", 0, 0, 0)],
    ),
]  # fmt: skip
CASES = alternating(CRASHES)


@pytest.mark.parametrize(
    ("processes", "crash"), CASES, indirect=["processes"], ids=[f"{a}, {b.name}" for a, b in CASES]
)
def test_a_statement_is_carried_out_whole_or_has_never_been(
    processes: Processes, crash: Crash
) -> None:
    if crash.functions:
        fill(processes, *crash.functions)
    die(processes, crash.role, crash.place, crash.text)
    assert states(processes.place) == crash.found
    assert finish_the_work(processes) == crash.after


@pytest.mark.parametrize(
    ("place", "flag", "after"),
    [("at", False, AGAIN), ("answered", True, ("cancelled", 1, 0, 1))],
)
def test_a_running_task_is_asked_to_end_or_has_never_been(
    processes: Processes, place: str, flag: bool, after: State
) -> None:
    """Once the request was answered, the task never starts again, whatever dies."""
    fill(processes, programs.quick)
    reserve(processes, 1)
    die(processes, "canceller", place, _sql.CANCEL)
    assert states(processes.place) == [RUNNING]
    assert query(processes.place, "SELECT cancel_requested FROM tasks") == [(flag,)]
    assert finish_the_work(processes) == [after]


# -- while the server has it in its hands ----------------------------------------------------


# Within the server, a statement that writes waits for a lock of the test's.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_advisory_xact_lock({key}); RETURN NULL; END$$;
CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON tasks EXECUTE FUNCTION hold();
SELECT pg_advisory_lock({key})
"""


@contextmanager
def held(place: str) -> Iterator[None]:
    """Let no statement that writes into the store come to its end."""
    where, _, schema = place.partition("#")
    loop = asyncio.new_event_loop()
    connecting = asyncpg.connect(where, server_settings={"search_path": schema})
    connection = loop.run_until_complete(connecting)
    try:
        key = int(schema.removeprefix("test_"), 16)
        loop.run_until_complete(connection.execute(HOLD.format(key=key)))
        yield
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


def until(fact: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("role", "word", "before", "found", "after"),
    [
        ("enqueuer", "INSERT INTO", [], [NEW] * 3, [ONCE] * 3),
        ("reserver", "SELECT * FROM", [NEW] * 3, [RUNNING] * 3, [AGAIN] * 3),
        ("canceller", "FOR", [NEW], [("cancelled", 0, 0, 0)], [("cancelled", 0, 0, 0)]),
    ],
)
def test_what_the_server_has_begun_it_ends_without_who_asked(
    processes: Processes,
    role: str,
    word: str,
    before: list[State],
    found: list[State],
    after: list[State],
) -> None:
    """SIGKILL while the statement waits within the server, which has not noticed yet."""
    place = str(processes.place)
    fill(processes, *[programs.quick] * len(before))
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sitq' "
        f"AND wait_event_type = 'Lock' AND query LIKE '%{word}%{place.partition('#')[2]}%'"
    )
    with held(place):
        process = processes.start(role)
        until(lambda: query(place, waiting) != [])
        process.kill()
        assert states(place) == before
    until(lambda: states(place) != before)
    assert states(place) == found
    assert finish_the_work(processes) == after


# -- transactions of several statements ------------------------------------------------------

SCRIPT = "CREATE TABLE sitq.tasks ("
LATEST = _schema.migrations()[-1][0]
# Place, text, and the number of the last migration that counts afterwards.
BIRTHS = [
    ("answered", "CREATE SCHEMA", 0),
    ("answered", SCRIPT, 0),
    ("commit", SCRIPT, 0),
    ("committed", SCRIPT, LATEST),
    *(
        [
            ("at", _schema.LOCK_MIGRATIONS, 0),
            ("at", "CREATE SCHEMA", 0),
            ("at", _schema.CREATE_RECORD, 0),
            ("at", SCRIPT, 0),
            ("at", _schema.RECORD_MIGRATION, 0),
            ("answered", _schema.RECORD_MIGRATION, 0),
        ]
        if LONG
        else []
    ),
]


@pytest.mark.parametrize(("place", "text", "version"), BIRTHS)
def test_a_new_store_has_its_whole_schema_or_nothing(
    tmp_path: Path, place: str, text: str, version: int
) -> None:
    """On one loop only: the connection's loop opens it, whatever the callers' loop."""
    processes = Processes("asyncio", tmp_path, "postgres")
    schema = str(processes.place).partition("#")[2]
    die(processes, "enqueuer", place, text)
    relations = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('{}')"
    is_there = f"SELECT to_regnamespace('{schema}') IS NOT NULL"
    assert query(processes.place, is_there) == [(version > 0,)]
    if version:
        assert query(processes.place, "SELECT max(number) FROM migrations") == [(version,)]
    else:
        assert query(processes.place, relations.format(schema)) == [(0,)]
    assert processes.start("enqueuer").popen.wait(20) == 0
    assert states(processes.place) == [NEW] * 3
    assert finish_the_work(processes) == [ONCE] * 3


MIGRATE = """
import sys, anyio
from sitq.backends.postgres import _schema
from tests.faults import breaking, places

script = "ALTER TABLE sitq.tasks ADD colour TEXT; CREATE INDEX colours ON sitq.tasks (colour);"
first = _schema.migrations()
later = (*first, (len(first) + 1, script))
_schema.migrations = lambda: later
breaking.arm(print)
anyio.run(places.backend_at(sys.argv[1]).open)
"""


@pytest.mark.parametrize(
    ("place", "text", "version"),
    [
        ("answered", "ALTER TABLE", LATEST),
        ("commit", "ALTER TABLE", LATEST),
        ("committed", "ALTER TABLE", LATEST + 1),
    ],
)
def test_an_older_store_is_migrated_whole_or_not_at_all(
    tmp_path: Path, place: str, text: str, version: int
) -> None:
    processes = Processes("asyncio", tmp_path, "postgres")
    fill(processes, programs.quick)
    run = partial(
        subprocess.run,
        [sys.executable, "-c", MIGRATE, str(processes.place)],
        timeout=100,
        check=False,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert run(env={**environment, **point("die", place, text)}).returncode == 9
    assert states(processes.place) == [NEW]
    latest = "SELECT max(number) FROM migrations"
    assert query(processes.place, latest) == [(version,)]
    schema = str(processes.place).partition("#")[2]
    colours = f"SELECT to_regclass('{schema}.colours') IS NOT NULL"
    assert query(processes.place, colours) == [(version > LATEST,)]
    assert run(env=environment).returncode == 0
    assert query(processes.place, latest) == [(LATEST + 1,)]
    assert states(processes.place) == [NEW]


def prepare(place: str) -> None:
    """Make the store, and a table of the user's beside it."""

    async def main() -> None:
        async with TaskQueue(backend_at(place)):
            pass

    anyio.run(main)
    query(place, "CREATE TABLE notes (text TEXT)")


def notes(place: str) -> list[Any]:
    return [text for (text,) in query(place, "SELECT text FROM notes")]


@pytest.mark.parametrize(
    ("processes", "breaks", "found", "after"),
    [("asyncio", "before", [RUNNING], [AGAIN]), ("trio", "after", [ONCE], [ONCE])],
    indirect=["processes"],
)
def test_a_task_that_completes_itself_has_both_effects_or_none(
    processes: Processes, breaks: str, found: list[State], after: list[State]
) -> None:
    place = str(processes.place)
    prepare(place)

    async def main() -> None:
        async with TaskQueue(backend_at(place)) as queue:
            await queue.enqueue(programs.complete, place, breaks)

    anyio.run(main)
    process = processes.start("worker")
    process.wait_for("broken")
    assert process.popen.wait(20) == 9
    assert states(place) == found
    assert notes(place) == ["paid"] * (breaks == "after")
    assert finish_the_work(processes) == after
    assert notes(place) == ["paid"]


@pytest.mark.parametrize(
    ("processes", "commits"), [("trio", 0), ("asyncio", 1)], indirect=["processes"]
)
def test_a_task_of_a_users_transaction_is_there_with_the_rest_or_not_at_all(
    processes: Processes, commits: int
) -> None:
    place = str(processes.place)
    prepare(place)
    process = processes.start("binder", commits=commits)
    process.wait_for("broken")
    assert process.popen.wait(20) == 9
    assert states(place) == [NEW] * commits
    assert notes(place) == ["ordered"] * commits
    assert finish_the_work(processes) == [ONCE] * commits
