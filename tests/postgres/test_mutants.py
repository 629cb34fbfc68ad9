"""The store with one of its statements broken: the state machine finds out each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from sitq.backends.postgres import _schema, _sql
from sitq.protocols import Clock
from tests.properties.history import BrokenRuleError
from tests.properties.machine import search
from tests.properties.stores import Place, postgres

pytestmark = pytest.mark.timeout(300)

SEARCH = settings(
    max_examples=250,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the first find is enough
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
STATEMENTS = {
    "success by id only": (
        "SUCCEED", " AND tasks.lease_end IS NOT NULL AND tasks.epoch = batch.epoch", ""
    ),
    "success of any epoch": ("SUCCEED", " AND tasks.epoch = batch.epoch", ""),
    "outcome of any epoch": ("FINISH", " AND tasks.epoch = batch.epoch", ""),
    "outcome after the end": ("SUCCEED", " AND tasks.lease_end IS NOT NULL", ""),
    "retry for ever": ("FINISH", "tasks.attempts >= tasks.max_attempts", "false"),
    "cancellation forgotten": ("FINISH", " AND tasks.cancel_requested", " AND false"),
    "release spends": ("FINISH", "greatest(tasks.attempts - 1, 0)", "tasks.attempts"),
    "renewal of any epoch": (
        "RENEW", " AND tasks.epoch = batch.epoch", ""
    ),
}  # fmt: skip
FUNCTIONS = {
    "eta ignored": (" AND task.eta <= moment", " AND true"),
    "priority ignored": ("ORDER BY top.priority DESC LIMIT 1", "ORDER BY top.priority LIMIT 1"),
    "order of insertion": ("ORDER BY one.eta, one.seq", "ORDER BY one.seq"),
    "expired tasks run": ("(task.expires_at IS NULL OR task.expires_at > moment)", "true"),
    "attempt counted at the end": ("attempts = task.attempts + 1", "attempts = task.attempts"),
    "crash forgotten": ("crashes = least(task.crashes, 1000000) + 1", "crashes = task.crashes"),
    "attempt spent by a crash": ("greatest(task.attempts - 1, 0)", "task.attempts"),
    "deleted early": ("done.delete_at <= moment", "done.finished_at <= moment"),
    "lease too long": ("make_interval(secs => seconds)", "make_interval(secs => seconds + 1)"),
}  # fmt: skip
INSERT = "            INSERT INTO sitq.tasks (\n"
IN_ONE_STEP = """\
            ON CONFLICT (unique_key)
            WHERE unique_key IS NOT NULL AND finished_at IS NULL AND NOT key_released
              AND (unique_until IS NULL OR epoch = 0)
            DO NOTHING
"""
LOOK_UP = """\
            SELECT tasks.id INTO holder FROM sitq.tasks
            WHERE tasks.unique_key = keys[i] AND finished_at IS NULL AND NOT key_released
              AND (unique_until IS NULL OR epoch = 0) AND NOT tasks.id = ANY (ids);
            EXIT WHEN FOUND;
"""
# What is done in one step is done in two.
STEPS = {
    "keys looked up before": [
        ("CREATE UNIQUE INDEX tasks_unique", "CREATE INDEX tasks_unique"),
        (INSERT, f"{LOOK_UP}{INSERT}"),
        (IN_ONE_STEP, ""),
    ],
    "taken back a moment later": [
        ("ELSE 'pending' END AS status\n", "ELSE 'pending' END AS status, pg_sleep(0.03)\n"),
        ("LIMIT most\n        FOR UPDATE SKIP LOCKED) AS gone", "LIMIT most) AS gone"),
    ],
}
# All of them in a soak, and those that are found at once always.
LONG = "SITQ_SOAK" in os.environ
QUICK = {"outcome after the end", "cancellation forgotten", "eta ignored", "crash forgotten"}
QUICK |= {"success by id only", "keys looked up before"}


def chosen(names: Mapping[str, object]) -> list[str]:
    return [name for name in names if LONG or name in QUICK]


def search_all() -> None:
    def make(clock: Clock, folder: Path) -> Place:
        return postgres(clock, folder)

    search(SEARCH, make)


@pytest.mark.parametrize("name", chosen(STATEMENTS))
def test_a_wrong_statement_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, right, wrong = STATEMENTS[name]
    sql = getattr(_sql, statement)
    assert right in sql
    monkeypatch.setattr(_sql, statement, sql.replace(right, wrong))
    with pytest.raises((BrokenRuleError, Flaky)):  # races do not always end the same way
        search_all()


@pytest.mark.parametrize("name", chosen(FUNCTIONS))
def test_a_wrong_function_of_the_schema_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_functions(monkeypatch, FUNCTIONS[name])
    with pytest.raises((BrokenRuleError, Flaky)):  # races do not always end the same way
        search_all()


@pytest.mark.parametrize("name", chosen(STEPS))
def test_a_function_in_two_steps_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_functions(monkeypatch, *STEPS[name])
    with pytest.raises((BrokenRuleError, Flaky)):
        search_all()


def break_functions(monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> None:
    broken = _schema.migrations()
    for right, wrong in changes:
        assert any(right in script for _, script in broken)
        broken = tuple((number, script.replace(right, wrong)) for number, script in broken)
    monkeypatch.setattr(_schema, "migrations", lambda: broken)
