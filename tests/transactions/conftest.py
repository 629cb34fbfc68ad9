"""A store with the user's table, and a connection of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sitq import TaskQueue
from tests.transactions.kinds import AWAITED, KINDS, Own, Place, opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the drivers that know asyncio only where the loop is trio's."""
    items[:] = [item for item in items if not _is_impossible(item)]


def _is_impossible(item: pytest.Item) -> bool:
    spec = getattr(item, "callspec", None)
    parameters = {} if spec is None else spec.params
    return parameters.get("kind") in AWAITED and parameters.get("anyio_backend") == "trio"


@pytest.fixture
async def queue(place: Place) -> AsyncIterator[TaskQueue]:
    """A queue on the store."""
    async with TaskQueue(place.backend()) as queue:
        yield queue


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the store is."""
    return Place(tmp_path / "q.db")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the user's connection."""
    kind: str = request.param
    return kind


@pytest.fixture
async def own(queue: TaskQueue, place: Place, kind: str) -> AsyncIterator[Own]:
    """The user's connection."""
    place.prepare()
    async with opened(kind, place) as own:
        yield own
