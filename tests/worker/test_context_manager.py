"""`async with Worker(...)`: the worker runs beside the body, and its end is the body's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest

from sitq import BackendConnectionError, SQLiteBackend, TaskQueue, TaskStatus, UsageError, Worker
from sitq.worker import _outcome_writer
from tests.worker.gate import GATE, add, bounded, until

pytestmark = pytest.mark.anyio


def a_worker(tmp_path: Path) -> Worker:
    return Worker(SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL"))


class Broken(Exception):
    """What ends a service of the worker in these tests."""


@pytest.fixture
def break_service(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Set it, and a service of each worker fails."""
    event = anyio.Event()

    async def fail(_: object) -> None:
        await event.wait()
        raise Broken

    monkeypatch.setattr(_outcome_writer.OutcomeWriter, "write_progress", fail)
    return event


async def test_a_worker_runs_tasks_beside_the_body(queue: TaskQueue, tmp_path: Path) -> None:
    async with a_worker(tmp_path) as worker:
        assert isinstance(worker, Worker)
        assert await queue.result(await queue.enqueue(add, 1, 2), timeout=20) == 3
    task_id = await queue.enqueue(add, 1, 2)
    assert (await queue.get_task(task_id)).status is TaskStatus.PENDING


async def test_the_end_of_the_body_lets_running_tasks_finish(
    queue: TaskQueue, tmp_path: Path
) -> None:
    async with anyio.create_task_group() as group:
        async with a_worker(tmp_path):
            task_id = await queue.enqueue(bounded)
            await until(GATE.entered.is_set)
            group.start_soon(anyio.to_thread.run_sync, GATE.opened.set)
        assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS


async def test_an_error_of_the_body_is_raised_as_it_is(queue: TaskQueue, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with a_worker(tmp_path):
            raise ZeroDivisionError


async def test_a_cancelled_body_hands_running_tasks_back_at_once(
    queue: TaskQueue, tmp_path: Path
) -> None:
    with anyio.CancelScope() as scope:
        async with a_worker(tmp_path):
            task_id = await queue.enqueue(bounded)
            await until(GATE.entered.is_set)
            scope.cancel()
            await anyio.sleep_forever()
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


async def test_a_store_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "missing" / "q.db"))
    with pytest.raises(BackendConnectionError):
        async with worker:
            pytest.fail("the body ran")


async def test_a_running_worker_cannot_be_entered_again(tmp_path: Path) -> None:
    async with a_worker(tmp_path) as worker:
        with pytest.raises(UsageError, match="running already"):
            async with worker:
                pytest.fail("the body ran")
    async with worker:
        pass


async def test_a_stopped_worker_leaves_the_body_alone(tmp_path: Path) -> None:
    async with a_worker(tmp_path) as worker:
        await worker.stop()
        await anyio.wait_all_tasks_blocked()


async def test_a_worker_that_fails_cancels_the_body_and_raises(
    tmp_path: Path, break_service: anyio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with a_worker(tmp_path):
            break_service.set()
            await anyio.sleep_forever()
    assert caught.group_contains(Broken)
    assert "has failed" in caplog.text
    await anyio.lowlevel.checkpoint()  # nothing of the cancellation is left


async def test_a_worker_that_fails_does_not_hide_the_bodys_own_error(
    tmp_path: Path, break_service: anyio.Event
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with a_worker(tmp_path):
            break_service.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise ZeroDivisionError


@pytest.mark.parametrize("end", [ZeroDivisionError, asyncio.CancelledError])
async def test_an_error_at_the_end_of_the_worker_is_logged_if_another_one_is_raised(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: type[BaseException],
) -> None:
    close = SQLiteBackend.close

    async def fail_to_close(self: SQLiteBackend) -> None:
        await close(self)
        raise Broken

    monkeypatch.setattr(SQLiteBackend, "close", fail_to_close)
    with pytest.raises(end):
        async with a_worker(tmp_path):
            raise end
    (record,) = [each for each in caplog.records if "has failed" in each.message]
    assert record.exc_info is not None
    assert record.exc_info[0] is Broken


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_enter_and_exit_may_happen_in_different_asyncio_tasks(
    queue: TaskQueue, tmp_path: Path
) -> None:
    worker = a_worker(tmp_path)
    await asyncio.create_task(worker.__aenter__())
    assert await queue.result(await queue.enqueue(add, 1, 2), timeout=20) == 3
    await asyncio.create_task(worker.__aexit__(None, None, None))
    await worker.stop()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_error_surfaces_at_the_exit_where_the_entering_task_has_ended(
    tmp_path: Path, break_service: anyio.Event
) -> None:
    worker = a_worker(tmp_path)
    await asyncio.create_task(worker.__aenter__())
    break_service.set()
    await until(lambda: worker._run_state is None)
    with pytest.raises(ExceptionGroup) as caught:
        await worker.__aexit__(None, None, None)
    assert caught.group_contains(Broken)


FIXTURE_TEST = """
import pytest
from sitq import TaskQueue, Worker
from sitq.backends.memory import MemoryBackend

def add(a: int, b: int) -> int:
    return a + b

{preamble}

@{fixture}
async def queue():
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue, Worker(backend):
        yield queue

{mark}
async def test_one(queue):
    assert await queue.result(await queue.enqueue(add, 1, 2), timeout=20) == 3

{mark}
async def test_another(queue):
    assert await queue.result(await queue.enqueue(add, 3, 4), timeout=20) == 7
"""


def run_pytest(folder: Path, source: str, *options: str) -> str:
    file = folder / "test_it.py"
    file.write_text(source)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(folder), *options, str(file)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_worker_is_a_fixture_under_anyios_plugin(tmp_path: Path) -> None:
    preamble = textwrap.dedent(
        """
        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param
        """
    )
    source = FIXTURE_TEST.format(
        preamble=preamble, fixture="pytest.fixture", mark="@pytest.mark.anyio"
    )
    assert "4 passed" in run_pytest(tmp_path, source, "-p", "no:asyncio")


def test_a_worker_is_a_fixture_under_pytest_asyncio(tmp_path: Path) -> None:
    pytest.importorskip("pytest_asyncio")
    source = FIXTURE_TEST.format(
        preamble="import pytest_asyncio",
        fixture="pytest_asyncio.fixture",
        mark="@pytest.mark.asyncio",
    )
    assert "2 passed" in run_pytest(
        tmp_path, source, "-o", "asyncio_default_fixture_loop_scope=function"
    )
