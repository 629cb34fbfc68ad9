"""Stores whose administration is broken on purpose: the state machine finds out each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from sitq.administration import BulkChange, BulkResult, QueuePause, TaskChange, TaskFilter
from sitq.backends import _cursors, _task_filters
from sitq.backends.memory import MemoryBackend
from sitq.backends.memory import _admin as memory_admin
from sitq.backends.memory._operations import Rows
from sitq.backends.memory._rows import TaskRow
from sitq.backends.postgres import _admin_sql as postgres_sql
from sitq.backends.postgres import _schema as postgres_schema
from sitq.backends.sqlite import _admin as sqlite_admin
from sitq.backends.sqlite import _admin_sql as sqlite_sql
from sitq.backends.sqlite import _schema as sqlite_schema
from sitq.backends.sqlite import _sql
from sitq.ids import TaskId
from sitq.models import ALL_QUEUES, Reservation, Task, TaskInfo
from sitq.protocols import Clock
from tests.properties.admin_machine import AdminMachine
from tests.properties.history import BrokenRuleError
from tests.properties.machine import search
from tests.properties.stores import Maker, Place, memory, postgres, private_sqlite

pytestmark = pytest.mark.timeout(300)

SEARCH = settings(
    max_examples=400,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the first find is enough
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
LONG = "SITQ_SOAK" in os.environ


def is_found(maker: Maker) -> None:
    with pytest.raises((BrokenRuleError, Flaky)):  # races do not always end the same way
        search(SEARCH, maker, kind=AdminMachine)


# -- the reference store ---------------------------------------------------------------------


class ServeAllThoughPaused(MemoryBackend):
    """A worker of all queues gets the tasks of paused ones."""

    async def reserve(
        self, worker: str, queues: Sequence[str], limit: int, lease: float
    ) -> Reservation:
        pauses = dict(self._rows.pauses)
        if tuple(queues) == ALL_QUEUES:
            self._rows.pauses.clear()
        try:
            return await super().reserve(worker, queues, limit, lease)
        finally:
            self._rows.pauses.update(pauses)


class KeepAttempts(MemoryBackend):
    """The attempts of a task stay when it is deleted."""

    def __init__(self, *, clock: Clock) -> None:
        super().__init__(clock=clock)
        self._kept: dict[TaskId[Any], TaskRow] = {}

    async def change_tasks(
        self,
        change: TaskChange,
        where: TaskFilter,
        limit: int,
        cursor: str | None,
        *,
        dry_run: bool,
    ) -> BulkResult:
        self._kept |= self._rows.by_id
        return await super().change_tasks(change, where, limit, cursor, dry_run=dry_run)

    async def enqueue(self, tasks: Sequence[Task]) -> list[TaskId[Any]]:
        ids = await super().enqueue(tasks)
        for row in [self._rows.by_id[task_id] for task_id in ids]:
            old = self._kept.get(row.task.id, row)
            self._rows.put(replace(row, failures=row.failures or old.failures))
        return ids


REPEAT = memory_admin._repeat
PAGE = memory_admin._page
IS_AFTER = memory_admin._is_after
REFUSAL = _task_filters.refusal


def never_end_a_pause(rows: Rows, now: datetime) -> dict[str, QueuePause]:
    """A pause lasts until it is resumed, whatever its end."""
    return dict(rows.pauses)


def repeat_again(rows: Rows, now: datetime, repeat: Task, *, again: bool) -> TaskId[Any] | None:
    """Each retry of all repeats the tasks that an earlier one has repeated."""
    return REPEAT(rows, now, repeat, again=True)


def skip_a_row(
    rows: Rows, now: datetime, where: TaskFilter, limit: int, cursor: str | None
) -> tuple[list[TaskRow], str | None]:
    """The cursor stands for the row after the last one."""
    page, cursor = PAGE(rows, now, where, limit + 1, cursor)
    return page[:limit], cursor


def repeat_a_row(row: TaskRow, where: TaskFilter, last: list[Any]) -> bool:
    """The next page begins with the last row of this one."""
    return memory_admin._keys(row, where) == last or IS_AFTER(row, where, last)


def delete_what_runs(info: TaskInfo, change: TaskChange) -> str | None:
    """A bulk delete removes tasks that a worker runs."""
    return None if change.kind is BulkChange.DELETE else REFUSAL(info, change)


@pytest.mark.parametrize("mutant", [ServeAllThoughPaused, KeepAttempts])
def test_a_wrong_operation_is_found(mutant: type[MemoryBackend]) -> None:
    def make(clock: Clock, _folder: Path) -> Place:
        backend = mutant(clock=clock)
        return Place(lambda: backend)

    is_found(make)


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (Rows, "paused", never_end_a_pause),
        (memory_admin, "_repeat", repeat_again),
        (memory_admin, "_page", skip_a_row),
        (memory_admin, "_is_after", repeat_a_row),
        (_task_filters, "refusal", delete_what_runs),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_wrong_rule_is_found(
    place: object, name: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, wrong)
    is_found(memory)


# -- the stores that speak SQL ---------------------------------------------------------------

# A statement, or a migration, and what of it is replaced.
Change = tuple[ModuleType, str, str, str]
SQLITE: dict[str, list[Change]] = {
    "pause ignored": [(_sql, "PAUSED", "until IS NULL", "false")],
    "pause never ends": [(_sql, "PAUSED", "until > ?", "? > 0")],
    "repeated twice": [(sqlite_sql, "REPEATED", "retried_as", "NULL")],
    "attempts kept": [(
        sqlite_schema, "migrations", "DELETE FROM attempts WHERE seq = OLD.seq",
        "DELETE FROM attempts WHERE false",
    )],
}  # fmt: skip
DELETES = "status <> 'in_progress'"
CLEARED = "DELETE FROM sitq.attempts USING mine WHERE attempts.task_id = mine.id"
PENDING = "(task.eta, task.seq) > (place_eta, place_seq)"
POSTGRES: dict[str, list[Change]] = {
    "pause ignored": [(postgres_schema, "migrations", "name <> ALL (paused)", "true")],
    "pause never ends": [(
        postgres_schema, "migrations", "pause.until IS NULL OR pause.until > moment", "true",
    )],
    "repeated twice": [(
        postgres_schema, "migrations", "ELSIF earlier IS NULL OR again THEN", "ELSE",
    )],
    "attempts kept": [(postgres_sql, "DELETE", CLEARED, f"{CLEARED} AND false")],
    "row skipped": [(
        postgres_schema, "migrations", PENDING, PENDING.replace("place_seq)", "place_seq + 1)"),
    )],
    "row repeated": [(postgres_schema, "migrations", PENDING, PENDING.replace(">", ">="))],
}  # fmt: skip
# All of them in a soak, and those that are found at once always.
QUICK = {"pause ignored", "pause never ends", "repeated twice"}


def break_statements(monkeypatch: pytest.MonkeyPatch, changes: list[Change]) -> None:
    for module, name, right, wrong in changes:
        statement = getattr(module, name)
        if isinstance(statement, str):
            assert right in statement
            monkeypatch.setattr(module, name, statement.replace(right, wrong))
            continue
        scripts = statement()
        assert any(right in script for _, script in scripts)
        broken = tuple((number, script.replace(right, wrong)) for number, script in scripts)
        monkeypatch.setattr(module, name, lambda broken=broken: broken)


@pytest.mark.parametrize("name", [name for name in SQLITE if LONG or name in QUICK])
def test_a_wrong_statement_of_the_file_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_statements(monkeypatch, SQLITE[name])
    is_found(private_sqlite)


@pytest.mark.parametrize("name", [name for name in POSTGRES if LONG or name == "pause ignored"])
def test_a_wrong_statement_of_the_server_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_statements(monkeypatch, POSTGRES[name])
    is_found(postgres)


@pytest.mark.skipif(not LONG, reason="it takes many examples; the conformance suite finds it too")
@pytest.mark.parametrize("shift", [1, -1])
def test_a_cursor_of_the_file_that_is_off_by_one_is_found(
    shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = _cursors.decode_cursor

    def decode_wrong(where: TaskFilter, cursor: str) -> list[Any]:
        *keys, last = decode(where, cursor)
        return [*keys, last + shift] if isinstance(last, int) else [*keys, last]

    monkeypatch.setattr(sqlite_admin, "decode_cursor", decode_wrong)
    is_found(private_sqlite)


def test_a_delete_of_running_tasks_of_the_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_task_filters, "refusal", delete_what_runs)
    is_found(private_sqlite)


def test_a_delete_of_running_tasks_of_the_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_task_filters, "refusal", delete_what_runs)
    break_statements(monkeypatch, [(postgres_sql, "DELETE", DELETES, "true")])
    is_found(postgres)
