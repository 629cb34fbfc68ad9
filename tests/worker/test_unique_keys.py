"""A task that enqueues under the unique key that it holds, or has held, itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pytest

from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue, Worker, call, current_task

pytestmark = pytest.mark.anyio

SEEN: list[int] = []
PLACE: list[Path] = []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The store that the tasks find."""
    SEEN.clear()
    PLACE[:] = [tmp_path / "q.db"]
    return PLACE[0]


async def tick(number: int, until: Literal["end", "start"]) -> None:
    SEEN.append(number)
    if number < 3:
        async with TaskQueue(SQLiteBackend(PLACE[0])) as queue:
            await queue.options(unique_key="tick", unique_until=until).enqueue(
                tick, number + 1, until
            )


async def many() -> None:
    async with TaskQueue(SQLiteBackend(PLACE[0])) as queue:
        await queue.options(unique_key="k").enqueue_many([call(many), call(many)])


def blocking() -> None:
    with SyncTaskQueue(SQLiteBackend(PLACE[0])) as queue:
        assert queue.options(unique_key="k").enqueue(blocking) == current_task().id


async def other() -> None:
    async with TaskQueue(SQLiteBackend(PLACE[0])) as queue:
        await queue.options(unique_key="another").enqueue(tick, 3, "end")


async def test_a_task_that_enqueues_its_successor_goes_on_with_a_key_until_the_start(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = SQLiteBackend(place)
    async with TaskQueue(backend) as queue:
        await queue.options(unique_key="tick", unique_until="start").enqueue(tick, 0, "start")
        assert await Worker(backend).drain() == 4
    assert SEEN == [0, 1, 2, 3]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("function", "arguments", "warnings"),
    [(tick, (0, "end"), 1), (many, (), 1), (blocking, (), 1), (other, (), 0)],
)
async def test_a_task_that_gets_its_own_id_back_is_warned_once(
    place: Path,
    caplog: pytest.LogCaptureFixture,
    function: Any,
    arguments: tuple[Any, ...],
    warnings: int,
) -> None:
    backend = SQLiteBackend(place)
    async with TaskQueue(backend) as queue:
        task_id = await queue.options(unique_key="tick" if arguments else "k").enqueue(
            function, *arguments
        )
        await Worker(backend).drain()
        assert (await queue.get_task(task_id)).status == "success"
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("sitq.")]
    assert len(texts) == warnings, texts
    assert all(task_id in text and 'unique_until="start"' in text for text in texts)
