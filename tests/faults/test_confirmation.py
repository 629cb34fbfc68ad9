"""An error of `enqueue` never lies: nothing was stored, or it says that this is unknown."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend, UnknownOutcomeError
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.models import Task
from tests.sqlite.failing import Failing
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio


def stored(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM tasks")}


NO_DESCRIPTOR = """
import os, resource, sys
import anyio
from sitq import BackendError, SQLiteBackend, UnknownOutcomeError
from tests.sqlite.samples import some_task

async def main():
    backend = SQLiteBackend(sys.argv[1])
    await backend.open()
    task = some_task()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    while len(taken) < 3000:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
        if len(taken) == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 20, most))
    try:
        try:
            print(*await backend.enqueue([task]))
        except UnknownOutcomeError:
            print("unknown")
        except BackendError:
            print("nothing")
    finally:
        for file in taken:
            os.close(file)
    print(*await backend.enqueue([some_task()]))
    await backend.close()

anyio.run(main, backend=sys.argv[2])
"""


async def test_without_a_descriptor_nothing_is_stored_or_it_is_acknowledged(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    path = tmp_path / "q.db"
    done = await anyio.run_process(
        [sys.executable, "-c", NO_DESCRIPTOR, str(path), anyio_backend_name],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    first, second = done.stdout.decode().split()
    assert first != "unknown"
    assert stored(path) == {first, second} - {"nothing"}


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "no")], ids=["memory", "os"])
async def test_what_fails_after_the_commit_does_not_fail_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, anyio.fail_after(10):
        patch.setattr(WakeupFile, "signal", fail)
        ids = await backend.enqueue([some_task(), some_task()])
    assert stored(path) == set(ids)
    await backend.close()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), KeyboardInterrupt(), sqlite3.OperationalError("disk I/O error")],
    ids=lambda error: type(error).__name__,
)
async def test_a_commit_that_raises_leaves_the_outcome_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Calls that waited together are not tried again one by one: they would be stored twice."""
    if isinstance(error, sqlite3.Error):
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    path = tmp_path / "q.db"
    failing = Failing(monkeypatch)
    backend = SQLiteBackend(path)
    await backend.open()
    errors: list[UnknownOutcomeError] = []
    tasks = [some_task() for _ in range(3)]

    async def enqueue(task: Task) -> None:
        with pytest.raises(UnknownOutcomeError, match=r"enqueue on .*q\.db") as caught:
            await backend.enqueue([task])
        errors.append(caught.value)

    with failing.at("COMMIT", "after", error, times=9), anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for task in tasks:
                group.start_soon(enqueue, task)
    assert len(errors) == 3
    assert stored(path) == {task.id for task in tasks}
    (last,) = await backend.enqueue([some_task()])
    assert len(stored(path)) == 4
    assert last in stored(path)
    await backend.close()


async def test_a_commit_that_certainly_failed_is_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    path = tmp_path / "q.db"
    failing = Failing(monkeypatch)
    backend = SQLiteBackend(path)
    await backend.open()
    with failing.at("COMMIT", "before", error):
        with pytest.raises(Exception, match="full") as caught:
            await backend.enqueue([some_task()])
    assert not isinstance(caught.value, UnknownOutcomeError)
    assert stored(path) == set()
    await backend.close()
