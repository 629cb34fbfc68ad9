"""The store with one of its statements broken: the state machine finds out each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from sitq.backends.postgres import _schema, _sql
from sitq.protocols import Backend, Clock
from tests.properties.history import BrokenRuleError
from tests.properties.machine import StoreMachine
from tests.properties.stores import postgres

pytestmark = pytest.mark.timeout(300)

SEARCH = settings(
    max_examples=150,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the first find is enough
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
STATEMENTS = {
    "success of any epoch": ("SUCCEED", " AND tasks.epoch = batch.epoch", ""),
    "outcome of any epoch": ("FINISH", " AND tasks.epoch = batch.epoch", ""),
    "outcome after the end": ("SUCCEED", " AND tasks.status = 'in_progress'", ""),
    "retry for ever": ("FINISH", "tasks.attempts >= tasks.max_attempts", "false"),
    "cancellation forgotten": ("FINISH", " AND tasks.cancel_requested", " AND false"),
    "release spends": ("FINISH", "greatest(tasks.attempts - 1, 0)", "tasks.attempts"),
    "renewal of any epoch": (
        "RENEW",
        "tasks.epoch = batch.epoch\nRETURNING tasks.id, tasks.epoch",
        "true\nRETURNING tasks.id, batch.epoch",
    ),
}  # fmt: skip
FUNCTIONS = {
    "eta ignored": (" AND task.eta <= moment", " AND true"),
    "priority ignored": ("SELECT max(top.priority)", "SELECT min(top.priority)"),
    "order of insertion": ("ORDER BY one.eta, one.seq", "ORDER BY one.seq"),
    "expired tasks run": ("(task.expires_at IS NULL OR task.expires_at > moment)", "true"),
    "attempt counted at the end": ("attempts = task.attempts + 1", "attempts = task.attempts"),
    "crash forgotten": ("crashes = least(task.crashes, 1000000) + 1", "crashes = task.crashes"),
    "attempt spent by a crash": ("greatest(task.attempts - 1, 0)", "task.attempts"),
    "deleted early": ("done.delete_at <= moment", "done.finished_at <= moment"),
    "lease too long": ("make_interval(secs => seconds)", "make_interval(secs => seconds + 1)"),
}  # fmt: skip
# All of them in a soak, and those that are found at once always.
LONG = "SITQ_SOAK" in os.environ
QUICK = {"outcome after the end", "cancellation forgotten", "eta ignored", "crash forgotten"}


def chosen(names: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for name in names if LONG or name in QUICK]


def search() -> None:
    def make(clock: Clock, folder: Path) -> Callable[[], Backend]:
        return postgres(clock, folder)

    machine = type("Machine", (StoreMachine,), {"makers": (make,)})
    run_state_machine_as_test(machine, settings=SEARCH)


@pytest.mark.parametrize("name", chosen(STATEMENTS))
def test_a_wrong_statement_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, right, wrong = STATEMENTS[name]
    sql = getattr(_sql, statement)
    assert right in sql
    monkeypatch.setattr(_sql, statement, sql.replace(right, wrong))
    with pytest.raises((BrokenRuleError, Flaky)):  # races do not always end the same way
        search()


@pytest.mark.parametrize("name", chosen(FUNCTIONS))
def test_a_wrong_function_of_the_schema_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = FUNCTIONS[name]
    ((number, script),) = _schema.migrations()
    assert right in script
    broken = ((number, script.replace(right, wrong)),)
    monkeypatch.setattr(_schema, "migrations", lambda: broken)
    with pytest.raises((BrokenRuleError, Flaky)):  # races do not always end the same way
        search()
