"""The end of a process hands running attempts back: it is no outcome of theirs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, os, signal, sys, time
import anyio
from sitq import RetryPolicy, SQLiteBackend, TaskQueue, Worker, call, current_task

loop, database, function = sys.argv[1:4]
BUSY = 0

def say(text):
    os.write(1, f"{{text}}\\n".encode())

async def waits():
    global BUSY
    BUSY += 1
    if BUSY == 120:
        say("busy")
    await anyio.sleep(60)

async def computes():
    say("busy")
    while True:
        sum(range(1000))

def computes_in_a_thread():
    say("busy")
    end = time.monotonic() + 3
    while time.monotonic() < end and not current_task().cancel_requested:
        sum(range(1000))

async def does_nothing():
    pass

async def exits():
    sys.exit(3)

async def interrupts_itself():
    raise KeyboardInterrupt

def exits_in_a_thread():
    sys.exit(3)

async def forks():
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

class Odd(SystemExit):
    @property
    def code(self):
        raise ValueError

async def forks_and_raises():
    child = os.fork()
    if child == 0:
        raise Odd
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

async def forks_and_waits():
    child = os.fork()
    if child == 0:
        await anyio.sleep(0.1)
        say("a second worker")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def forks_in_a_thread():
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def new_worker():
    return Worker(SQLiteBackend(database), max_concurrency=200, lease=60)

async def put(number):
    async with TaskQueue(SQLiteBackend(database)) as queue:
        await queue.enqueue_many([call(globals()[function])] * number)

{body}
"""

MAIN_ENDS = """
async def main():
    await put(120)
    background = asyncio.create_task(new_worker().start())
    while BUSY < 120:
        await asyncio.sleep(0.01)
    {end}

asyncio.run(main())
"""

WORKS = """
def on_term(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(5)

signal.signal(signal.SIGTERM, on_term)

async def main():
    await put(1)
    await new_worker().start()

if loop == "asyncio":
    asyncio.run(main())
else:
    anyio.run(main, backend=loop)
"""

DRAINS = """
async def main():
    await put(1)
    print(await new_worker().drain(), flush=True)

anyio.run(main, backend=loop)
"""

FORKS_AFTERWARDS = """
import gc
import warnings
gc.disable()
# Python 3.12 warns of threads, and one of the worker's may still be about to end.
warnings.simplefilter("ignore", DeprecationWarning)

async def main():
    await put(1)
    await new_worker().drain()
    child = os.fork()
    if child == 0:
        await anyio.sleep(0)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

anyio.run(main, backend=loop)
if (child := os.fork()) == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def started(tmp_path: Path, body: str, loop: str, function: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body))
    return subprocess.Popen(
        [sys.executable, str(script), loop, str(tmp_path / "q.db"), function],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(tmp_path: Path) -> list[tuple[str, int, str | None]]:
    with closing(sqlite3.connect(tmp_path / "q.db")) as connection:
        return connection.execute("SELECT status, attempts, error FROM tasks").fetchall()


@pytest.mark.parametrize("end", ["return", "raise ValueError", "raise KeyboardInterrupt"])
def test_the_end_of_an_asyncio_program_hands_all_that_runs_back(tmp_path: Path, end: str) -> None:
    with started(tmp_path, MAIN_ENDS.replace("{end}", end), "asyncio", "waits") as process:
        _, errors = process.communicate(timeout=60)
    assert rows(tmp_path) == [("pending", 0, None)] * 120, errors


def test_an_interrupt_hands_all_that_runs_back(tmp_path: Path) -> None:
    body = MAIN_ENDS.replace("{end}", "await asyncio.sleep(60)")
    with started(tmp_path, body, "asyncio", "waits") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert rows(tmp_path) == [("pending", 0, None)] * 120, errors


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("function", ["computes", "computes_in_a_thread"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_task_computes_ends_the_worker_and_is_no_outcome(
    tmp_path: Path, loop: str, function: str, number: signal.Signals
) -> None:
    if (loop, function, number) == ("trio", "computes_in_a_thread", signal.SIGTERM):
        pytest.skip("a handler that raises while trio waits ends trio itself")
    with started(tmp_path, WORKS, loop, function) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            # asyncio turns the first SIGINT into a cancellation, which waits for the loop.
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        process.kill()
        errors = process.stderr.read() if process.stderr is not None else ""
    assert process.returncode != -signal.SIGKILL, errors
    assert rows(tmp_path) == [("pending", 0, None)], errors


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("exits", "SystemExit: 3"),
        ("exits_in_a_thread", "SystemExit: 3"),
        ("interrupts_itself", "KeyboardInterrupt"),
    ],
)
def test_what_a_task_raises_itself_is_a_failure_of_its_own(
    tmp_path: Path, loop: str, function: str, error: str
) -> None:
    with started(tmp_path, DRAINS, loop, function) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "1\n"), errors
    assert rows(tmp_path) == [("failed", 1, error)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "function", ["forks", "forks_and_raises", "forks_and_waits", "forks_in_a_thread"]
)
def test_a_child_that_a_task_forked_is_no_second_worker(
    tmp_path: Path, loop: str, function: str
) -> None:
    with started(tmp_path, DRAINS, loop, function) as process:
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (0, "1\n"), errors
    assert rows(tmp_path) == [("success", 1, None)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_child_forked_after_the_end_of_the_worker_is_left_alone(
    tmp_path: Path, loop: str
) -> None:
    with started(tmp_path, FORKS_AFTERWARDS, loop, "does_nothing") as process:
        output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("7\n7\n", "")
