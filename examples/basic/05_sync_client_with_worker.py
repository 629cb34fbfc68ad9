"""Enqueue from code that has no event loop; a worker runs beside it, in a thread of its own."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal

from sitq import SQLiteBackend, SyncTaskQueue, Worker

__all__ = ["Picture", "main", "resize", "slug"]


@dataclass
class Picture:
    """Dataclasses travel too."""

    name: str
    size: tuple[int, int]


async def resize(picture: Picture, factor: float) -> Picture:
    """Be an async function: the caller does not notice."""
    await anyio.sleep(0.01)
    width, height = picture.size
    return Picture(picture.name, (int(width * factor), int(height * factor)))


def slug(title: str) -> str:
    """Be a plain function."""
    return "-".join(title.lower().split())


def main(folder: Path) -> None:
    """Use the queue as a script, a Flask view or a Django command would."""
    path = folder / "tasks.db"
    # A backend belongs to one event loop: the worker gets an instance of its own.
    worker = Worker(SQLiteBackend(path), tasks=[resize, slug])
    with start_blocking_portal() as portal, SyncTaskQueue(SQLiteBackend(path)) as queue:
        portal.start_task(worker.start)
        try:
            resize_id = queue.enqueue(resize, Picture("cat", (800, 600)), 0.5)
            slug_id = queue.options(priority=10).enqueue(slug, "Tasks Without A Broker")

            picture = queue.get_result(resize_id, timeout=10)
            title = queue.get_result(slug_id, timeout=10)
            if picture is not None and title is not None:
                print(f"resized: {queue.deserialize_result(picture)}")
                print(f"slug: {queue.deserialize_result(title)}")
        finally:
            portal.call(worker.stop)
    print("the worker has stopped")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
