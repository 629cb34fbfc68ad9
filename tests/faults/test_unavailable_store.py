"""An unavailable store: callers get typed errors, the worker waits, nothing is lost."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from sitq import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    BackendFullError,
    SQLiteBackend,
    TaskQueue,
    TaskStatus,
    Worker,
)
from sitq.backends.sqlite import _writer
from sitq.models import LeaseState, Outcome
from tests.sqlite.samples import locked

pytestmark = pytest.mark.anyio


async def note(number: int) -> int:
    return number


async def test_a_caller_gets_an_error_while_the_store_stays_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "BUSY_SECONDS", 0.2)
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        with locked(path):
            with pytest.raises(BackendBusyError, match=r"enqueue on .*q\.db: database is locked"):
                await queue.enqueue(note, 2)
            # Readers are not in the way of a writer, nor it in theirs.
            assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
        await queue.enqueue(note, 3)
        assert await Worker(SQLiteBackend(path)).drain() == 2


async def test_reads_do_not_wait_for_a_write_that_waits_for_a_lock(tmp_path: Path) -> None:
    """With the write's ten seconds of patience, each of these would be late by its timeout."""
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        ended = anyio.Event()

        async def write() -> None:
            await queue.enqueue(note, 2)
            ended.set()

        with locked(path):
            async with anyio.create_task_group() as group:
                group.start_soon(write)
                await anyio.wait_all_tasks_blocked()
                assert await queue.get_result(task_id, timeout=0.05) is None
                assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
                assert not ended.is_set()
                group.cancel_scope.cancel()
        await queue.enqueue(note, 3)


class CountingBackend(SQLiteBackend):
    """Counts the calls of `finish` that have failed."""

    failures = 0

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        try:
            return await super().finish(outcomes)
        except BackendError:
            self.failures += 1
            raise


async def test_a_worker_waits_out_a_locked_store_and_keeps_its_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_writer, "BUSY_SECONDS", 0.1)
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue, anyio.create_task_group() as group:
        backend = CountingBackend(path)
        worker = Worker(backend, max_concurrency=5)
        started = threading.Event()
        go = threading.Event()
        STATE["started"], STATE["go"] = started, go
        ids = [await queue.enqueue(held, number) for number in range(5)]
        with caplog.at_level(logging.WARNING):
            await group.start(worker.start)
            await to_thread.run_sync(started.wait)
            with locked(path):
                go.set()
                # It fails more than once, and logs that once.
                with anyio.fail_after(20):
                    while backend.failures < 3:  # noqa: ASYNC110 - a fact of the worker's
                        await anyio.sleep(0.01)
            results = [await queue.get_result(task_id, timeout=20) for task_id in ids]
        assert [result and result.status for result in results] == [TaskStatus.SUCCESS] * 5
        assert [result and result.attempts for result in results] == [1] * 5
        assert caplog.text.count("cannot store outcomes") == 1
        await worker.stop()


STATE: dict[str, threading.Event] = {}


def held(number: int) -> int:
    """Say that it runs, and go on when it may."""
    STATE["started"].set()
    STATE["go"].wait(20)
    return number


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_loses_nothing_and_heals(small_disk: Path) -> None:
    path = small_disk / "q.db"
    acknowledged: list[str] = []
    async with TaskQueue(SQLiteBackend(path)) as queue:
        with pytest.raises(BackendFullError, match="full"):
            while True:
                acknowledged.append(await queue.enqueue(take, b"x" * 20_000))
        with pytest.raises(BackendFullError):
            await queue.enqueue(take, b"x" * 200_000)
        await anyio.run_process(["mount", "-o", "remount,size=20m", str(small_disk)])
        acknowledged.append(await queue.enqueue(take, b"more"))
        assert await Worker(SQLiteBackend(path)).drain() == len(acknowledged)
        for task_id in acknowledged:
            assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def take(data: bytes) -> int:
    return len(data)


async def test_a_disk_that_is_full_while_a_worker_runs_is_waited_out(small_disk: Path) -> None:
    path = small_disk / "q.db"
    ballast = small_disk / "ballast"
    async with TaskQueue(SQLiteBackend(path)) as queue, anyio.create_task_group() as group:
        started, go = threading.Event(), threading.Event()
        STATE["started"], STATE["go"] = started, go
        task_id = await queue.enqueue(held, 7)
        worker = Worker(SQLiteBackend(path))
        await group.start(worker.start)
        await to_thread.run_sync(started.wait)
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"\0" * (4 << 20))
        go.set()
        assert await queue.get_result(task_id, timeout=0.3) is None or ballast.exists()
        ballast.unlink()
        result = await queue.get_result(task_id, timeout=20)
        assert result is not None
        assert queue.deserialize_result(result) == 7
        await worker.stop()


async def test_a_store_that_disappears_takes_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue, anyio.create_task_group() as group:
        worker = Worker(SQLiteBackend(path), shutdown_timeout=0)
        await group.start(worker.start)
        path.unlink()
        with pytest.raises(BackendConnectionError, match="disappeared"):
            await queue.enqueue(note, 1)
        # The worker lives; it has nothing to write, so it ends at once.
        await worker.stop()


async def test_the_log_of_a_crash_may_be_read_by_the_next_process(tmp_path: Path) -> None:
    """What was acknowledged is in the -wal file when the process dies; it is all there later."""
    path = tmp_path / "q.db"
    script = f"""
import anyio, os
from sitq import SQLiteBackend, TaskQueue
async def main():
    queue = TaskQueue(SQLiteBackend({str(path)!r}))
    from tests.faults.test_unavailable_store import note
    for number in range(50):
        print(await queue.enqueue(note, number), flush=True)
    os._exit(9)
anyio.run(main)
"""
    done = await anyio.run_process(
        [sys.executable, "-c", script],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 9, done.stderr
    assert (tmp_path / "q.db-wal").stat().st_size > 0
    async with TaskQueue(SQLiteBackend(path)) as queue:
        for task_id in done.stdout.decode().split():
            assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
        assert await Worker(SQLiteBackend(path)).drain() == 50


async def test_heartbeats_get_through_beside_greedy_writers(tmp_path: Path) -> None:
    """Four connections that write without a pause; p99 of a renewal stays below a sixth lease."""
    path = tmp_path / "q.db"
    lease = 3.0
    backend = SQLiteBackend(path)
    async with TaskQueue(backend) as queue:
        await queue.enqueue(note, 1)
        (task,) = (await backend.reserve("w", ["default"], 1, lease)).tasks
        stopping = threading.Event()

        def write() -> None:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
                while not stopping.is_set():
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("UPDATE tasks SET misses = misses")
                    connection.execute("COMMIT")

        def beat() -> list[float]:
            keeper = backend.lease_keeper()
            times = []
            for _ in range(200):
                start = time.perf_counter()
                assert keeper.renew([task.lease], lease) == [LeaseState.HELD]
                times.append(time.perf_counter() - start)
            keeper.close()
            return sorted(times)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        try:
            times = await to_thread.run_sync(beat)
        finally:
            stopping.set()
            for writer in writers:
                writer.join()
        assert times[int(len(times) * 0.99)] < lease / 6
