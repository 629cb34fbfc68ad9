"""Operate a queue: read why tasks failed, pause while it is mended, and retry all of them."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import anyio

from sitq import Admin, SQLiteBackend, TaskFilter, TaskQueue, Worker

__all__ = ["MAIL_SERVER", "main", "send"]

MAIL_SERVER = {"is up": False}


def send(address: str) -> str:
    """Fail while the mail server is down."""
    if not MAIL_SERVER["is up"]:
        message = "no answer from smtp.example.com"
        raise ConnectionError(message)
    return f"sent to {address}"


async def main(folder: Path) -> None:
    """Let three mails fail, find out why, and have them sent after all."""
    backend = SQLiteBackend(folder / "tasks.db")
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        mail = queue.options(queue="mail")
        for name in ("ann", "bob", "cem"):
            await mail.enqueue(send, f"{name}@example.com")
        await Worker(backend, queues=["mail"]).drain()

        failed = TaskFilter(status="failed", queue="mail")
        print(f"failed: {await admin.count_tasks(failed)}")
        page = await admin.list_tasks(failed, limit=1)
        (attempt,) = await admin.get_attempts(page.items[0].task_id)
        print(f"the last one, attempt {attempt.number}: {attempt.error}")

        # Nothing more is to fail meanwhile. A pause is stored: each worker obeys it.
        await admin.pause_queue("mail", reason="the mail server is down", by="Ann")
        await mail.enqueue(send, "dee@example.com")
        ran = await Worker(backend, queues=["mail"]).drain()
        for each in (await admin.overview()).queues:
            reason = each.pause.reason if each.pause is not None else "none"
            print(f"{each.name}: {each.due} due, {ran} ran, paused: {reason}")

        MAIL_SERVER["is up"] = True
        await admin.resume_queue("mail")
        print(f"would be retried: {(await admin.retry_tasks(failed, dry_run=True)).done}")
        print(f"retried: {(await admin.retry_tasks(failed)).done}")
        print(f"retried once more: {(await admin.retry_tasks(failed)).done}")

        async with Worker(backend, queues=["mail"]):
            for info in (await admin.list_tasks(failed)).items:
                if info.retried_as is not None:
                    await queue.get_result(info.retried_as)
            while not (workers := await admin.list_workers()):  # noqa: ASYNC110 - no event: the store's
                await anyio.sleep(0.01)
            print(f"a worker is {workers[0].state} and serves {workers[0].queues}")
        await Worker(backend, queues=["mail"]).drain()
        print(f"succeeded: {await admin.count_tasks(TaskFilter(status='success'))}")
        print(f"deleted: {(await admin.delete_tasks(failed)).done}")


if __name__ == "__main__":
    # Failures are logged with their tracebacks; this program prints them itself.
    logging.getLogger("sitq").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        anyio.run(main, Path(name))
