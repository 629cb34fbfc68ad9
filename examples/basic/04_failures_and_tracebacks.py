"""See what a failed task leaves behind, and have a task tried again."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import anyio

from sitq import (
    RetryPolicy,
    SQLiteBackend,
    TaskFailedError,
    TaskQueue,
    TaskStatus,
    Worker,
    current_task,
)

__all__ = ["double", "flaky", "main", "parse_port"]


def parse_port(text: str) -> int:
    """Fail for anything that is not a number."""
    try:
        return int(text)
    except ValueError as error:
        message = f"no port: {text}"
        raise RuntimeError(message) from error


def flaky() -> str:
    """Fail twice, then succeed."""
    attempt = current_task().attempt
    if attempt < 3:
        message = f"attempt {attempt} got no answer"
        raise ConnectionError(message)
    return f"done in attempt {attempt}"


async def double(number: int) -> int:
    """Show that the worker is alive."""
    return number * 2


async def main(folder: Path) -> None:
    """Run a task that fails for good, one that is tried again, and one that succeeds."""
    backend = SQLiteBackend(folder / "tasks.db")
    policy = RetryPolicy(max_attempts=3, delay=0.05, retry_on=(ConnectionError,))
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend)
        await group.start(worker.start)
        failing = await queue.enqueue(parse_port, "eighty")
        retried = await queue.options(retry=policy).enqueue(flaky)
        healthy = await queue.enqueue(double, 21)

        failed = await queue.get_result(failing)
        if failed is not None and failed.status is TaskStatus.FAILED:
            print(f"status: {failed.status}")
            print(f"error: {failed.error}")
            print("traceback, the task's own frames:")
            print("\n".join(f"    {line}" for line in (failed.traceback or "").splitlines()))
            try:
                queue.deserialize_result(failed)
            except TaskFailedError as error:
                kind = type(error).__name__
                print(f"asking for its value raises {kind}: {str(error).splitlines()[0]}")

        text = await queue.get_result(retried)
        if text is not None:
            print(f"flaky: {queue.deserialize_result(text)!r}, attempts: {text.attempts}")
        number = await queue.get_result(healthy)
        if number is not None:
            print(f"the worker lives: {queue.deserialize_result(number)}")
        await worker.stop()


if __name__ == "__main__":
    # Failures are logged with their tracebacks; this program prints them itself.
    logging.getLogger("sitq").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name))
