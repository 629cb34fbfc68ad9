"""A worker finds a function whichever way producer and worker have loaded its file.

One process for each way: it enqueues a task in the store of all, and then works on a copy of it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAM = """
import sys, anyio
from sitq import RetryPolicy, SQLiteBackend, TaskQueue, Worker, current_task

class Flaky(Exception): ...

async def job(way: str) -> str:
    if current_task().attempt == 1:
        raise Flaky
    return way

POLICY = RetryPolicy(delay=0, retry_on=(Flaky,))

async def enqueue(way: str, path: str) -> None:
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.options(retry=POLICY).enqueue(job, way)

async def work(path: str) -> None:
    await Worker(SQLiteBackend(path), tasks=[job]).drain()

def main() -> None:
    _, way, path = sys.argv
    if path:
        anyio.run(enqueue, way, path)
    print("ready", flush=True)
    if copy := sys.stdin.readline().strip():
        anyio.run(work, copy)

if __name__ == "__main__":
    main()
"""


class Way(NamedTuple):
    """How a process loads the program: the interpreter's arguments, and the folder."""

    arguments: tuple[str, ...]
    folder: Path

    def start(self, store: Path | None = None) -> subprocess.Popen[str]:
        """Start the process; it enqueues a task, if there is a store, and waits then."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [sys.executable, *self.arguments, " ".join(self.arguments), str(store or "")],
            cwd=self.folder,
            env={**kept, "PWD": str(self.folder)},  # as a shell does it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def finish(process: subprocess.Popen[str], copy: Path | str = "") -> None:
    """Have a process work on a store, and wait for its end."""
    process.communicate(f"{copy}\n", timeout=50)
    assert process.returncode == 0


def unfinished(store: Path) -> list[str]:
    """Return what did not succeed: how each task was enqueued."""
    with closing(sqlite3.connect(store)) as connection:
        rows = connection.execute("SELECT function, status, error FROM tasks").fetchall()
    assert rows
    return [f"{name}: {status} {error}" for name, status, error in rows if status != "success"]


def imported(module: str) -> tuple[str, ...]:
    return ("-c", f"import {module}; {module}.main()")


def release(folder: Path) -> Path:
    """Make a release of the program, with a package."""
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").touch()
    for name in ("app.py", "package/tool.py", "package/__main__.py"):
        (folder / name).write_text(PROGRAM)
    return folder


def scripts(root: Path) -> list[Way]:
    old = release(root / "releases" / "42")
    (root / "current").symlink_to(old)
    current = root / "current"
    return [
        Way(("app.py",), current),
        Way((str(current / "app.py"),), root),
        Way((str(old / "app.py"),), root),
        Way(("-m", "app"), current),
        Way(imported("app"), old),
    ]


def modules(root: Path) -> list[Way]:
    folder = release(root / "project")
    return [
        Way(("package/tool.py",), folder),
        Way(("tool.py",), folder / "package"),
        Way(("-m", "package.tool"), folder),
        Way(imported("package.tool"), folder),
    ]


def mains(root: Path) -> list[Way]:
    folder = release(root / "project")
    return [
        Way(("package",), folder),
        Way(("-m", "package"), folder),
        Way(("package/__main__.py",), folder),
        Way(imported("package.__main__"), folder),
    ]


def archives(root: Path) -> list[Way]:
    with zipfile.ZipFile(root / "app-42.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    (root / "app.pyz").symlink_to("app-42.pyz")
    return [Way((str(root / "app.pyz"),), root), Way(("app-42.pyz",), root)]


@pytest.mark.parametrize("make", [scripts, modules, mains, archives])
def test_each_way_to_load_the_file_runs_the_tasks_of_all_others(
    tmp_path: Path, make: Callable[[Path], list[Way]]
) -> None:
    ways = make(tmp_path)
    store = tmp_path / "store.db"
    processes = [ways[0].start(store)]
    ready(processes[0])  # one makes the store
    processes += [way.start(store) for way in ways[1:]]
    for process in processes[1:]:
        ready(process)
    copies = [shutil.copy(store, tmp_path / f"{n}.db") for n, _ in enumerate(ways)]
    for process, copy in zip(processes, copies, strict=True):
        finish(process, copy)
    assert {str(way): unfinished(Path(copy)) for way, copy in zip(ways, copies, strict=True)} == {
        str(way): [] for way in ways
    }


def test_the_next_release_behind_a_link_runs_the_tasks_of_the_last(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    producers = [way for way in scripts(tmp_path) if str(tmp_path / "releases") not in str(way)]
    for way in producers:
        process = way.start(store)
        ready(process)
        finish(process)
    shutil.move(tmp_path / "releases" / "42", tmp_path / "gone")
    release(tmp_path / "releases" / "43")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "43")
    for number, way in enumerate([*producers, Way(imported("app"), tmp_path / "current")]):
        copy = Path(shutil.copy(store, tmp_path / f"{number}.db"))
        process = way.start()
        ready(process)
        finish(process, copy)
        assert unfinished(copy) == [], way


def test_two_scripts_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    first, other = (release(tmp_path / name) for name in ("first", "other"))
    process = Way(("app.py",), first).start(store)
    ready(process)
    finish(process)
    for way in (Way(("app.py",), other), Way(imported("app"), other)):
        process = way.start()
        ready(process)
        finish(process, store)
    assert len(unfinished(store)) == 1
