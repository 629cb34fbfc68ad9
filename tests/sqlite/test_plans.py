"""Query plans: each look at the store is a seek in the intended index, never a scan."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from sitq.backends.sqlite import _schema, _sql

if TYPE_CHECKING:
    from collections.abc import Iterator

BY_KEY = "INTEGER PRIMARY KEY"
BY_ID = "sqlite_autoindex_tasks_1"

STATEMENTS: dict[str, str] = {
    name: value for name, value in vars(_sql).items() if name != "INFO_COLUMNS"
}
# Every statement, and what leads it to the rows.
PLANS = {
    "INSERT_ONE": None,
    "INSERT_ALIKE": None,
    "INSERT_BATCH": None,
    "INSERT_UNIQUE": None,
    "INSERT_UNIQUE_RETURNING": None,
    "KEY_HOLDER": "tasks_unique",
    "RELEASE_KEY": BY_KEY,
    "PAUSED": None,
    "PENDING_QUEUES": "tasks_due",
    "FIRST_ETA": "tasks_due",
    "NEXT_PRIORITY": "tasks_due",
    "DUE": "tasks_due",
    "DUE_KEYS": "tasks_due",
    "DUE_ROWS": BY_KEY,
    "PAYLOAD": BY_KEY,
    "NEXT_ETA": "tasks_due",
    "MARK_RESERVED": BY_KEY,
    "INSERT_LEASES": BY_KEY,
    "SUCCEED_BATCH": BY_ID,
    "SUCCEED_ALIKE": BY_ID,
    "DELETE_LEASES": BY_ID,
    "OPEN_ATTEMPT": BY_ID,
    "SET_FINAL": BY_KEY,
    "SET_RETRY": BY_KEY,
    "SET_RELEASED": BY_KEY,
    "SET_MISSED": BY_KEY,
    "DELETE_LEASE": BY_KEY,
    "RENEW": BY_ID,
    "LEASE_STATES": BY_ID,
    "SET_PROGRESS": BY_ID,
    "REQUEST_CANCEL": BY_KEY,
    "SWEEP_DUE": "tasks_done",
    "ENDED_LEASES": "leases_end",
    "RECLAIM": BY_KEY,
    "DELETE_ENDED": BY_KEY,
    "EXPIRE": "tasks_expiring",
    "PRUNE": "tasks_done",
    "STATUS": BY_ID,
    "INFOS": BY_ID,
    "RESULTS": BY_ID,
    "STORED": BY_ID,
    "STORED_BATCH": BY_ID,
    "SUCCEED_ONE": BY_ID,
    "SEEN": BY_ID,
}
# Asked for by hand, now and then: it looks through the index of what is final.
SCANS = {"PRUNE_OLDER"}
# What has no plan.
PRAGMAS = {"DATABASES", "DATA_VERSION"}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _schema.migrate(connection, ":memory:")
        yield connection


def steps_of(connection: sqlite3.Connection, name: str) -> list[str]:
    """What SQLite does to carry a statement out; a batch that was handed over is not looked for."""
    statement = STATEMENTS[name]
    positional = statement.count("?")
    named = dict.fromkeys(re.findall(r"(?<!:):([a-z]\w*)", statement), 0)
    plan = connection.execute(
        f"EXPLAIN QUERY PLAN {statement}", (0,) * positional if positional else named
    ).fetchall()
    own = re.compile(r"SCAN (json_each|batch|names|pauses|workers|CONSTANT ROW|\(subquery-\d+\))")
    return [row[3] for row in plan if not own.match(row[3])]


def test_each_statement_has_its_plan_here() -> None:
    named = {
        name
        for name, value in STATEMENTS.items()
        if isinstance(value, str) and re.fullmatch(r"[A-Z][A-Z_]+", name)
    }
    assert named == PLANS.keys() | SCANS | PRAGMAS


@pytest.mark.parametrize(("name", "index"), PLANS.items())
def test_a_statement_seeks_in_its_index(
    connection: sqlite3.Connection, name: str, index: str | None
) -> None:
    steps = steps_of(connection, name)
    assert index is None or any(index in step for step in steps), steps
    assert [step for step in steps if step.startswith("SCAN")] == []


@pytest.mark.parametrize("name", PLANS)
def test_a_statement_finds_its_order_in_the_index(
    connection: sqlite3.Connection, name: str
) -> None:
    """Sorting would read all rows that are due, however few are asked for.

    Only what shares a moment is sorted by number (the right part of an order).
    """
    steps = steps_of(connection, name)
    assert [step for step in steps if "TEMP B-TREE FOR ORDER BY" in step] == []


def test_a_look_at_due_tasks_ends_where_those_that_are_not_due_begin(
    connection: sqlite3.Connection,
) -> None:
    bounds = [step for step in steps_of(connection, "DUE") if "tasks_due" in step]
    assert bounds == ["SEARCH tasks USING INDEX tasks_due (queue=? AND priority=? AND eta<?)"]


@pytest.mark.parametrize("name", sorted(SCANS))
def test_what_scans_reads_an_index_and_no_row(connection: sqlite3.Connection, name: str) -> None:
    scans = [step for step in steps_of(connection, name) if step.startswith("SCAN")]
    assert scans == ["SCAN tasks USING COVERING INDEX tasks_done"]
