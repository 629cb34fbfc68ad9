"""The table of verbs agrees with the port, and with the stores that read from it."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from sitq.backends._operations import ENQUEUE_UNIQUE, VERBS, operations_of
from sitq.backends.postgres import _operations as postgres
from sitq.backends.sqlite import _operations as sqlite
from sitq.protocols import Backend

# What of the port is about the backend itself.
OTHERS = {"clock", "close", "lease_keeper", "listen", "open"}


def test_there_is_a_row_for_each_verb_of_the_port() -> None:
    methods = {name for name in vars(Backend) if not name.startswith("_")}
    assert {verb.name for verb in VERBS} == methods - OTHERS
    assert len({verb.name for verb in VERBS}) == len(VERBS)


@pytest.mark.parametrize(
    ("module", "verbs"), [(sqlite, VERBS), (postgres, (*VERBS, ENQUEUE_UNIQUE))]
)
def test_a_store_carries_out_each_verb(module: ModuleType, verbs: tuple[object, ...]) -> None:
    operations = operations_of(module, verbs)  # type: ignore[arg-type]
    assert list(operations) == list(verbs)
    assert all(inspect.isfunction(operation) for operation in operations.values())


def test_what_is_searched_by_is_there() -> None:
    names = {verb.searched_by for verb in (*VERBS, ENQUEUE_UNIQUE)} - {None}
    assert all(inspect.iscoroutinefunction(getattr(postgres, str(name))) for name in names)
