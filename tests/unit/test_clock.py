"""What backends take as a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sitq import SQLiteBackend, ValidationError
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.clock import SystemClock
from sitq.protocols import Backend
from sitq.testing import FakeClock

MAKERS: dict[str, Callable[..., Backend]] = {
    "memory": MemoryBackend,
    "sqlite": lambda clock: SQLiteBackend("q.db", clock=clock),
    "postgres": lambda clock: PostgresBackend("postgresql://localhost/db", clock=clock),
}


def make(kind: str, clock: Any) -> Any:
    return MAKERS[kind](clock=clock)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("clock", [5, "now", object(), FakeClock])
def test_what_is_no_clock_is_refused_by_its_type(kind: str, clock: object) -> None:
    name = type(clock).__name__
    with pytest.raises(ValidationError, match=rf"^clock: give an object .*\(got {name}\)$"):
        make(kind, clock)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_clock_is_taken_as_it_is_and_the_systems_for_none(kind: str) -> None:
    clock = FakeClock()
    assert make(kind, clock).clock is clock
    assert isinstance(make(kind, None).clock, SystemClock)
