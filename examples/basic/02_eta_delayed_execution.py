"""Enqueue tasks that start later: at a moment (eta), or after a delay."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from sitq import SQLiteBackend, TaskQueue, ValidationError, Worker

__all__ = ["main", "remind"]


def remind(text: str) -> str:
    """Say what was to be said."""
    print(f"  reminder: {text}")
    return text


async def main(folder: Path) -> None:
    """Enqueue three reminders in the wrong order; the worker runs each at its time."""
    backend = SQLiteBackend(folder / "tasks.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, max_concurrency=1)  # one at a time: they print in order
        await group.start(worker.start)

        # A moment is an aware datetime, in any time zone.
        eta = datetime.now(UTC) + timedelta(seconds=2)
        last = await queue.enqueue(remind, "third: at a moment", eta=eta)
        waiting = await queue.get_task(last)
        print(f"the last is {waiting.status}, its eta is kept in {waiting.eta.tzinfo}")

        # With options() the type checkers see the function's arguments too.
        middle = await queue.options(delay=1).enqueue(remind, "second: after a second")
        first = await queue.enqueue(remind, "first: at once")

        for task_id in (first, middle, last):
            result = await queue.get_result(task_id)
            info = await queue.get_task(task_id)
            if result is not None and result.started_at is not None:
                early = result.started_at < info.eta
                print(f"{queue.deserialize_result(result)!r} started before its eta: {early}")

        # A datetime without a zone means a different moment on each machine: it is refused.
        naive = datetime.now()  # noqa: DTZ005
        try:
            await queue.enqueue(remind, "never", eta=naive)
        except ValidationError as error:
            print(f"refused: {error}")
        await worker.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name))
