"""Query plans: each look at the store is a seek in the intended index, never a scan."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from sitq.backends.sqlite import _schema, _sql

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _schema.migrate(connection, ":memory:")
        yield connection


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (_sql.TOP_PRIORITY, "tasks_due"),
        (_sql.NEXT_PRIORITY, "tasks_due"),
        (_sql.DUE, "tasks_due"),
        (_sql.NEXT_ETA, "tasks_due"),
        (_sql.ENDED_LEASES, "leases_end"),
        (_sql.EXPIRE, "tasks_expiring"),
        (_sql.PRUNE, "tasks_done"),
        (_sql.SWEEP_DUE, "tasks_done"),
        (_sql.KEY_HOLDER, "tasks_unique"),
        (_sql.SUCCEED_BATCH, "sqlite_autoindex_tasks_1"),
        (_sql.RESULTS, "sqlite_autoindex_tasks_1"),
        (_sql.INFOS, "sqlite_autoindex_tasks_1"),
        (_sql.RENEW, "sqlite_autoindex_tasks_1"),
        (_sql.LEASE_STATES, "sqlite_autoindex_tasks_1"),
    ],
)
def test_a_statement_seeks_in_its_index(
    connection: sqlite3.Connection, statement: str, index: str
) -> None:
    parameters = dict.fromkeys(["queue", "priority", "now", "limit", "rows", "blob", "ends_at"], 0)
    positional = statement.count("?")
    plan = connection.execute(
        f"EXPLAIN QUERY PLAN {statement}", (0,) * positional if positional else parameters
    ).fetchall()
    steps = [row[3] for row in plan]
    assert any(index in step for step in steps), steps
    scans = [step for step in steps if step.startswith("SCAN") and "json_each" not in step]
    scans = [step for step in scans if "batch" not in step and "CONSTANT" not in step]
    assert scans == []
    assert not any("TEMP B-TREE FOR ORDER BY" in step for step in steps), steps
