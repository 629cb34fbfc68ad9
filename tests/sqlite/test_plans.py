"""Query plans: each look at the store is a seek in the intended index, never a scan."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from sitq import TaskFilter, TaskId
from sitq.backends._task_filters import MAX_SCANNED_ROWS
from sitq.backends.sqlite import _admin, _admin_sql, _schema, _sql
from sitq.backends.sqlite._operations import SQLiteTransaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sitq.administration import StatusFilter

ID = "01a20400-6f4e-7000-8000-000000000019"
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
# Those of the administration, without the ones that are made for a filter.
ADMIN_PLANS = {
    "NEXT_LEVEL": "tasks_due",
    "NEXT_QUEUE": "tasks_due",
    "REQUEST_CANCELS": BY_ID,
    "RELEASE_KEYS": BY_ID,
    "CANCEL_PENDING": BY_ID,
    "DELETE": BY_ID,
    "POSTPONE": BY_ID,
    "SET_PRIORITY": BY_ID,
    "REPLACE_PENDING": BY_ID,
    "REPEATED": BY_ID,
    "SET_REPEATED": BY_ID,
    "ATTEMPTS": "attempts_of_task",
    "ADD_ATTEMPTS": BY_KEY,
    "TRIM_ATTEMPTS": "attempts_of_task",
    "PAUSE": None,
    "RESUME": None,
    "PAUSES": None,
    "REPORT": None,
    "DEREGISTER": None,
    "ORDER": None,
    "WORKERS": None,
    "RUNNING": BY_KEY,
    "STALE_WORKERS": None,
    "FORGET_WORKERS": None,
    "IN_PROGRESS": BY_KEY,
    "LEVELS": "tasks_due",
    "HEAD": "tasks_due",
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
    """What SQLite does to carry a named statement out."""
    return steps_of_sql(connection, STATEMENTS[name])


def steps_of_sql(connection: sqlite3.Connection, statement: str) -> list[str]:
    """What SQLite does to carry a statement out; a batch that was handed over is not looked for.

    Nor are the rows of small tables: of leases, workers and pauses.
    """
    positional = statement.count("?")
    named = dict.fromkeys(re.findall(r"(?<!:):([a-z]\w*)", statement), 0)
    plan = connection.execute(
        f"EXPLAIN QUERY PLAN {statement}", (0,) * positional if positional else named
    ).fetchall()
    own = re.compile(
        r"SCAN (json_each|batch|names|wanted|pauses|workers|leases|queues|levels|CONSTANT ROW"
        r"|\(subquery-\d+\))"
    )
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


def test_each_statement_of_the_administration_has_its_plan_here() -> None:
    fields = {"ATTEMPT_FIELDS", "KEPT_FAILURES", "INFO_COLUMNS"}
    named = {name for name in vars(_admin_sql) if re.fullmatch(r"[A-Z][A-Z_]+", name)}
    assert named - fields - {"TYPE_CHECKING"} == ADMIN_PLANS.keys()


@pytest.mark.parametrize(("name", "index"), ADMIN_PLANS.items())
def test_a_statement_of_the_administration_seeks_in_its_index(
    connection: sqlite3.Connection, name: str, index: str | None
) -> None:
    steps = steps_of_sql(connection, getattr(_admin_sql, name))
    assert index is None or any(index in step for step in steps), steps
    assert [step for step in steps if step.startswith("SCAN")] == []


CONDITIONS = {
    "alone": TaskFilter(),
    "queue": TaskFilter(queue="mail"),
    "function": TaskFilter(function="jobs:run"),
    "error": TaskFilter(error="ValueError"),
    "times": TaskFilter(
        enqueued_after=datetime(2026, 1, 1, tzinfo=UTC), eta_before=datetime(2027, 1, 1, tzinfo=UTC)
    ),
    "key": TaskFilter(unique_key="key", priority=3, retry_of=TaskId[Any](ID)),
}
BY_INDEX: list[tuple[StatusFilter | None, str]] = [
    (None, BY_ID),
    ("success", BY_ID),
    ("in_progress", BY_KEY),
    ("failed", "tasks_unsuccessful"),
    ("cancelled", "tasks_unsuccessful"),
    ("expired", "tasks_unsuccessful"),
]


@pytest.mark.parametrize("where", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize(("status", "index"), BY_INDEX)
@pytest.mark.parametrize("part", ["floor", "page", "count"])
def test_a_list_by_id_seeks_its_place_in_the_index(
    connection: sqlite3.Connection,
    where: TaskFilter,
    status: StatusFilter | None,
    index: str,
    part: str,
) -> None:
    statements = _admin_sql.IdList(where.narrowed(status=status))
    steps = steps_of_sql(connection, getattr(statements, part))
    assert any(index in step for step in steps), steps
    assert [step for step in steps if step.startswith("SCAN")] == []
    if status != "in_progress":  # of these there are few
        assert any("id<?" in step for step in steps), steps
        assert [step for step in steps if "TEMP B-TREE" in step] == []


@pytest.mark.parametrize("where", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("status", ["pending", "due", "scheduled", "retrying"])
@pytest.mark.parametrize("part", ["floor", "scanned", "page", "count"])
def test_a_list_of_pending_tasks_seeks_its_place_in_the_index(
    connection: sqlite3.Connection, where: TaskFilter, status: StatusFilter, part: str
) -> None:
    statements = _admin_sql.PendingList(where.narrowed(status=status), 0)
    steps = steps_of_sql(connection, getattr(statements, part))
    assert any("tasks_due (queue=? AND priority=? AND eta" in step for step in steps), steps
    assert [step for step in steps if step.startswith("SCAN")] == []
    assert [step for step in steps if "TEMP B-TREE FOR ORDER BY" in step] == []


@pytest.mark.parametrize("where", [TaskFilter(ids=(TaskId[Any](ID),)), TaskFilter(worker="w")])
def test_a_list_of_given_tasks_or_of_a_worker_looks_at_no_others(
    connection: sqlite3.Connection, where: TaskFilter
) -> None:
    for part in ("floor", "page", "count"):
        steps = steps_of_sql(connection, getattr(_admin_sql.IdList(where), part))
        assert any("id=?" in step or BY_KEY in step for step in steps), steps
        assert [step for step in steps if step.startswith("SCAN")] == []


def test_a_list_of_pending_tasks_looks_at_a_bounded_number_of_rows(
    connection: sqlite3.Connection,
) -> None:
    """Where no row matches too, over many levels."""
    connection.execute(
        """
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT :count)
        INSERT INTO tasks (id, queue, priority, eta, function, result_ttl, enqueued_at, payload)
        SELECT 'id' || n, 'q' || (n % 30), n % 7, n, 'jobs:run', 1, 1, x'' FROM numbers
        """,
        {"count": MAX_SCANNED_ROWS + 100},
    )
    transaction = SQLiteTransaction(connection, datetime.now(UTC))
    where = TaskFilter(status="due", function="jobs:other")
    page = _admin.list_tasks(transaction, where, 100, None)
    assert page.items == ()
    assert page.cursor is not None
    assert page.scanned_to is not None
    rest = _admin.list_tasks(transaction, where, 100, page.cursor)
    assert (rest.items, rest.cursor) == ((), None)


def test_a_count_of_pending_tasks_ends_in_the_middle_of_a_queue(
    connection: sqlite3.Connection,
) -> None:
    connection.execute(
        """
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 20000)
        INSERT INTO tasks (id, queue, priority, eta, function, result_ttl, enqueued_at, payload)
        SELECT 'id' || n, 'default', 0, n / 3, 'jobs:run', 1, 1, x'' FROM numbers
        """
    )
    transaction = SQLiteTransaction(connection, datetime.now(UTC))
    where = TaskFilter(status="due", function="jobs:run")
    whole = _admin.count_tasks(transaction, where, 100_001, 60)
    assert (whole.value, whole.exact) == (20_000, True)
    part = _admin.count_tasks(transaction, where, 100_001, 0)
    assert 0 < part.value < 20_000
    assert not part.exact
