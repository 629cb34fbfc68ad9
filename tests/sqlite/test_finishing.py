"""A batch of successes is stored by one statement, whatever the attempts gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.models import Lease, Outcome
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio

VALUES = {
    "alike": [b"\xc0"] * 4,
    "empty": [b""] * 4,
    "different": [b"\x01", b"", b"\xc4\x00" * 3000, b"\x01"],
}


async def reserved(backend: SQLiteBackend, count: int) -> list[Lease]:
    """Store so many tasks and reserve them."""
    await backend.enqueue([some_task() for _ in range(count)])
    reservation = await backend.reserve("worker", ["default"], count, 30.0)
    return [task.lease for task in reservation.tasks]


@pytest.mark.parametrize("kind", VALUES)
async def test_each_task_gets_its_own_value(tmp_path: Path, kind: str) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    try:
        leases = await reserved(backend, 4)
        outcomes = [Outcome.success(*pair) for pair in zip(leases, VALUES[kind], strict=True)]
        assert await backend.finish(outcomes) == [True] * 4
        results = await backend.get_results([lease.task_id for lease in leases])
    finally:
        await backend.close()
    found = [results[lease.task_id] for lease in leases]
    assert [result and result.value for result in found] == VALUES[kind]


@pytest.mark.parametrize("values", [[b"\xc0", b"\xc0"], [b"\xc0", b"\xc2"]])
async def test_two_successes_of_one_task_in_a_batch_are_judged_one_by_one(
    tmp_path: Path, values: list[bytes]
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    try:
        first, second = await reserved(backend, 2)
        later = Lease(first.task_id, first.epoch + 1)
        for again, expected in ((first, [True, False, True]), (later, [False, False, False])):
            outcomes = [
                Outcome.success(first, values[0]),
                Outcome.success(again, values[1]),
                Outcome.success(second, values[0]),
            ]
            assert await backend.finish(outcomes) == expected
        result = (await backend.get_results([first.task_id]))[first.task_id]
    finally:
        await backend.close()
    assert result is not None
    assert result.value == values[0]
