"""A store with the user's table, and a connection of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sitq import TaskQueue
from tests.transactions.kinds import ASYNCIO_ONLY, KINDS, POSTGRES, Own, opened
from tests.transactions.places import Place, PostgresPlace
from tests.transactions.scene import Scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the drivers that know asyncio only where the loop is trio's."""
    items[:] = [item for item in items if not _is_impossible(item)]


def _is_impossible(item: pytest.Item) -> bool:
    spec = getattr(item, "callspec", None)
    parameters = {} if spec is None else spec.params
    return parameters.get("kind") in ASYNCIO_ONLY and parameters.get("anyio_backend") == "trio"


@pytest.fixture
async def queue(place: Place) -> AsyncIterator[TaskQueue]:
    """A queue on the store."""
    async with TaskQueue(place.backend()) as queue:
        yield queue


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where the store is: where the kind of connection leads to, or in a file."""
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else None
    place = PostgresPlace() if kind in POSTGRES else Place(tmp_path / "q.db")
    Scene.begin(place)
    yield place
    place.remove()


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
        Scene.own = own
        yield own
