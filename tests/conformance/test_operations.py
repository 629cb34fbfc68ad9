"""The table of verbs agrees with the port, and with the stores that read from it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sitq.administration import AdminBackend
from sitq.backends._operations import ADMIN_VERBS, ENQUEUE_UNIQUE, VERBS, Verb, operations_of
from sitq.backends.memory import _admin as memory_admin
from sitq.backends.memory import _operations as memory
from sitq.backends.postgres import _admin as postgres_admin
from sitq.backends.postgres import _operations as postgres
from sitq.backends.sqlite import SQLiteBackend
from sitq.backends.sqlite import _admin as sqlite_admin
from sitq.backends.sqlite import _operations as sqlite
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.backends.sqlite._writer import Writer
from sitq.models import Lease
from sitq.protocols import Backend
from sitq.testing._conformance._admin_calls import ADMIN_CALLS
from sitq.testing._conformance._opening import CALLS
from sitq.testing._conformance._suite import new_task

# What of the port is about the backend itself.
OTHERS = {"clock", "close", "lease_keeper", "listen", "open"}
# The topics whose listeners a verb wakes, called for a task that runs and for one that is pending.
WOKEN = {
    "enqueue": {"tasks"},
    "finish": {"results"},
    "cancel": {"results", "cancels"},
    "pause_queue": {"cancels"},
    "order_worker": {"cancels"},
}
ANY_CALL: dict[str, Any] = {**CALLS, **ADMIN_CALLS}


def test_there_is_a_row_for_each_verb_of_the_port() -> None:
    methods = {name for name in vars(Backend) if not name.startswith("_")}
    assert {verb.name for verb in VERBS} == methods - OTHERS
    added = {name for name in vars(AdminBackend) if not name.startswith("_")}
    assert {verb.name for verb in ADMIN_VERBS} == added - OTHERS
    names = [verb.name for verb in (*VERBS, *ADMIN_VERBS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("module", "verbs"),
    [
        (memory, VERBS),
        (sqlite, VERBS),
        (postgres, (*VERBS, ENQUEUE_UNIQUE)),
        (memory_admin, ADMIN_VERBS),
        (sqlite_admin, ADMIN_VERBS),
        (postgres_admin, ADMIN_VERBS),
    ],
)
def test_a_store_carries_out_each_verb(module: ModuleType, verbs: tuple[object, ...]) -> None:
    operations = operations_of(module, verbs)  # type: ignore[arg-type]
    assert list(operations) == list(verbs)
    assert all(inspect.isfunction(operation) for operation in operations.values())


def test_what_is_searched_by_is_there() -> None:
    names = {verb.recovered_by for verb in (*VERBS, ENQUEUE_UNIQUE)} - {None}
    assert all(inspect.iscoroutinefunction(getattr(postgres, str(name))) for name in names)


@pytest.mark.anyio
@pytest.mark.parametrize("verb", [*VERBS, *ADMIN_VERBS], ids=lambda verb: verb.name)
async def test_a_verb_wakes_the_listeners_of_what_it_has_changed_and_no_others(
    verb: Verb[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: set[str] = set()
    publish = Writer._publish

    def note(writer: Writer, transaction: SQLiteTransaction) -> None:
        woken.update(transaction.changed)
        publish(writer, transaction)

    monkeypatch.setattr(Writer, "_publish", note)
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    running, pending = new_task(), new_task(queue="other")
    await backend.enqueue([running, pending])
    (task,) = (await backend.reserve("worker", ("default",), 1, 30.0)).tasks
    woken.clear()
    for lease in (task.lease, Lease(pending.id, 0)):
        await ANY_CALL[verb.name](backend, lease)
    await backend.close()
    assert woken == WOKEN.get(verb.name, set())
