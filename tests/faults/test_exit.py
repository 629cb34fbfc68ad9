"""A forgotten close, or a worker left running, never keeps a process alive or makes it complain."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.timing import quickest

SCRIPT = """
import sys, threading
import anyio
from sitq import SQLiteBackend, SyncTaskQueue, TaskQueue, Worker

loop, database = sys.argv[1:3]

async def add(a: int, b: int) -> int:
    return a + b

def multiply(a: int, b: int) -> int:
    return a * b

{body}
print("last line", flush=True)
"""

FORGETS_EVERYTHING = """
async def main() -> None:
    queue = TaskQueue(SQLiteBackend(database))
    await queue.connect()
    ids = [await queue.enqueue(add, 1, 2), await queue.enqueue(multiply, 3, 4)]
    worker = Worker(SQLiteBackend(database))
    assert await worker.drain() == 2
    assert [queue.deserialize_result(await queue.get_result(i)) for i in ids] == [3, 12]

anyio.run(main, backend=loop)
"""

WORKER_IN_A_DAEMON_THREAD = """
def work() -> None:
    worker = Worker(SQLiteBackend(database))
    anyio.run(worker.start, backend=loop)

threading.Thread(target=work, daemon=True).start()
queue = SyncTaskQueue(SQLiteBackend(database))
ids = [queue.enqueue(add, 1, 2), queue.enqueue(multiply, 3, 4)]
assert [queue.deserialize_result(queue.get_result(i)) for i in ids] == [3, 12]
"""

ENDS_IN_THE_MIDDLE_OF_A_WRITE = """
import asyncio

async def forever(queue: TaskQueue, has_stored: anyio.Event) -> None:
    while True:
        await queue.enqueue(add, 1, 2)
        has_stored.set()

async def main() -> None:
    queue = TaskQueue(SQLiteBackend(database))
    async with anyio.create_task_group() as group:
        events = [anyio.Event() for _ in range(20)]
        for event in events:
            group.start_soon(forever, queue, event)
        for event in events:
            await event.wait()
        group.cancel_scope.cancel()

anyio.run(main, backend=loop)
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "body", [FORGETS_EVERYTHING, WORKER_IN_A_DAEMON_THREAD, ENDS_IN_THE_MIDDLE_OF_A_WRITE]
)
def test_a_script_ends_by_itself_in_a_moment(tmp_path: Path, loop: str, body: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body))
    command = [sys.executable, str(script), loop, str(tmp_path / "q.db")]
    assert quickest(lambda: seconds_to_end(command), 1) < 5


def seconds_to_end(command: list[str]) -> float:
    """How long a script runs on after its last line; it ends well."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        last_line = time.monotonic()
        try:
            code = process.wait(20)
        finally:
            process.kill()
        took = time.monotonic() - last_line
        assert (line, process.stderr.read()) == ("last line\n", "")
    assert code == 0
    return took
