"""`Worker.run`: a worker in a script, and what signals do to it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    SQLiteBackend,
    SyncTaskQueue,
    TaskId,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
)
from sitq.backends.memory import MemoryBackend
from tests.worker.gate import add

LOOPS = ["asyncio", "trio"]

JOBS = """
import sys
import time

import anyio


def say(text: str) -> None:
    print(text, flush=True)


async def quick() -> str:
    say("quick")
    return "done"


async def until_told(path: str) -> str:
    say("running")
    while not await anyio.Path(path).exists():
        await anyio.sleep(0.01)
    return "done"


async def for_ever() -> None:
    say("running")
    await anyio.sleep_forever()


async def compute() -> None:
    say("running")
    while True:
        sum(range(1000))


async def compute_in_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(compute)
"""

WORK = """
import logging
import os
import signal
import sys
from types import FunctionType

import jobs

from sitq import SQLiteBackend, Worker

install = signal.signal


def install_and_report(number, handler):
    def handle(number, frame):
        try:
            handler(number, frame)
        finally:
            os.write(1, b"handled\\n")  # print() must not be entered twice

    return install(number, handle if isinstance(handler, FunctionType) else handler)


if "report" in sys.argv:
    signal.signal = install_and_report
told = logging.getLogger("sitq.worker._script")
told.setLevel(logging.INFO)
told.addHandler(logging.StreamHandler(sys.stdout))
before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
worker = Worker(SQLiteBackend("q.db"), tasks=[jobs], lease=60.0)
print("started", worker.run(drain="drain" in sys.argv, backend=sys.argv[1]), flush=True)
assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
"""

BESIDE = """
import sys

import anyio
import jobs

from sitq import SQLiteBackend, Worker


async def main() -> None:
    async with Worker(SQLiteBackend("q.db"), tasks=[jobs], lease=60.0):
        await anyio.sleep_forever()


anyio.run(main, backend=sys.argv[1])
"""


class Script:
    """A folder with a script that runs a worker, and a queue on the same store."""

    def __init__(self, folder: Path) -> None:
        (folder / "jobs.py").write_text(JOBS)
        (folder / "work.py").write_text(WORK)
        (folder / "beside.py").write_text(BESIDE)
        self.folder = folder
        sys.path.insert(0, str(folder))
        try:
            import jobs  # type: ignore[import-not-found]
        finally:
            sys.path.remove(str(folder))
        self.jobs: Any = jobs
        self.queue = SyncTaskQueue(SQLiteBackend(folder / "q.db"))

    def enqueue(self, name: str, *args: object) -> TaskId[Any]:
        task_id: TaskId[Any] = self.queue.enqueue(getattr(self.jobs, name), *args)
        return task_id

    @contextmanager
    def process(
        self, *args: str, name: str = "work.py", **options: Any
    ) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, name, *args]
        with subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, text=True, **options
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = Script(tmp_path)
    with script.queue:
        yield script
    sys.modules.pop("jobs", None)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_drain_runs_what_is_due_and_returns_how_many(script: Script, loop: str) -> None:
    ids = [script.enqueue("quick") for _ in range(3)]
    with script.process(loop, "drain") as process:
        assert [line(process) for _ in range(4)] == ["quick", "quick", "quick", "started 3"]
        assert process.wait(20) == 0
    assert [script.queue.result(task_id, timeout=0) for task_id in ids] == ["done"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_first_signal_lets_running_tasks_finish(
    script: Script, loop: str, number: signal.Signals
) -> None:
    stopped = script.folder / "go on"
    task_id = script.enqueue("until_told", str(stopped))
    with script.process(loop) as process:
        assert line(process) == "running"
        process.send_signal(number)
        assert "lets running tasks finish" in line(process)
        later = script.enqueue("quick")
        stopped.touch()
        assert line(process) == "started 1"
        assert process.wait(20) == 0
    assert script.queue.result(task_id, timeout=0) == "done"
    assert script.queue.get_task(later).status is TaskStatus.PENDING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["for_ever", "compute", "compute_in_group"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_second_signal_ends_the_worker_at_once_and_hands_tasks_back(
    script: Script, loop: str, name: str, number: signal.Signals
) -> None:
    task_id = script.enqueue(name)
    with script.process(loop, "report", stderr=subprocess.PIPE) as process:
        assert line(process) == "running"
        process.send_signal(signal.SIGINT)
        # Before Python's handler has run, the second signal may overtake the first.
        while (said := line(process)) != "handled":
            assert "lets running tasks finish" in said
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, errors
    info = script.queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)
    assert "Traceback" not in errors


# asyncio waits for a computation before it acts on the first one.
@pytest.mark.parametrize(("loop", "signals"), [("asyncio", 2), ("trio", 1)])
def test_ctrl_c_hands_back_what_computes_beside_an_async_with(
    script: Script, loop: str, signals: int
) -> None:
    task_id = script.enqueue("compute_in_group")
    with script.process(loop, name="beside.py", stderr=subprocess.PIPE) as process:
        assert line(process) == "running"
        if signals == 2:
            process.send_signal(signal.SIGINT)
            wait_until_handled(process, signal.SIGINT)
        errors = errors_after(process, signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    info = script.queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)


def errors_after(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal, and once more if it came together with the one before: they count as one."""
    for _ in range(5):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[1]
    raise AssertionError("the process does not end")


def wait_until_handled(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until a signal is not pending any more: two of a kind at once count as one."""
    bit = 1 << (number - 1)
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        pending = [row.split()[1] for row in status.splitlines() if row[:6] in {"SigPnd", "ShdPnd"}]
        if not any(int(mask, 16) & bit for mask in pending):
            return


def test_a_signal_that_the_process_ignores_stays_ignored(script: Script) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    stopped = script.folder / "go on"
    script.enqueue("until_told", str(stopped))
    with script.process("asyncio", preexec_fn=ignore) as process:
        assert line(process) == "running"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("SIGTERM: the worker lets")
        stopped.touch()
        assert line(process) == "started 1"
        assert process.wait(20) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_in_another_thread_it_runs_without_signals(loop: Any) -> None:
    counts: list[int] = []

    def work() -> None:
        counts.append(Worker(MemoryBackend()).run(drain=True, backend=loop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert counts == [0]


@pytest.mark.anyio
async def test_where_a_loop_runs_it_is_refused() -> None:
    with pytest.raises(UsageError, match="start"):
        Worker(MemoryBackend()).run()


def test_an_unknown_loop_is_refused() -> None:
    backend: Any = "curio"
    with pytest.raises(ValidationError, match="backend: .*'trio'"):
        Worker(MemoryBackend()).run(backend=backend)


def test_trio_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sitq.worker._script.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'sitq\[trio\]'"):
        Worker(MemoryBackend()).run(backend="trio")


def test_the_backend_may_be_used_again_afterwards() -> None:
    backend = MemoryBackend()

    async def enqueue() -> None:
        from sitq import TaskQueue

        async with TaskQueue(backend) as queue:
            await queue.enqueue(add, 1, 2)

    worker = Worker(backend)
    assert worker.run(drain=True) == 0
    anyio.run(enqueue)
    assert worker.run(drain=True, backend="trio") in {0, 1}
