"""Starting, killing and reading the logs of the processes of `programs`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio

from sitq import TaskQueue
from tests.faults.places import Place, backend_at, new_place, query

__all__ = [
    "PATIENCE",
    "PROGRAMS",
    "ROOT",
    "Place",
    "Process",
    "Processes",
    "check_total",
    "counts",
    "enqueue",
    "query",
    "wait_for_status",
]

PROGRAMS = Path(__file__).with_name("programs.py")
ROOT = Path(__file__).parents[2]
PATIENCE = 40.0


class Process:
    """One process and its log."""

    def __init__(
        self,
        role: str,
        loop: str,
        database: Place,
        log: Path,
        broken: Mapping[str, str],
        settings: Mapping[str, float],
        through: Sequence[str] = (),
    ) -> None:
        self.log = log
        words = [f"{name}={value}" for name, value in settings.items()]
        with log.with_suffix(".stderr").open("wb") as stderr:
            self.popen = subprocess.Popen(
                [
                    *through,
                    sys.executable,
                    str(PROGRAMS),
                    role,
                    loop,
                    str(database),
                    str(log),
                    *words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT), **broken},
            )

    def lines(self, word: str) -> list[list[str]]:
        """What follows a word in the log, line by line."""
        if not self.log.exists():
            return []
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [line[1:] for line in lines if line and line[0] == word]

    def wait_for(self, word: str, count: int = 1) -> list[list[str]]:
        """Wait until a word stands in the log so many times."""
        give_up = time.monotonic() + PATIENCE
        while len(found := self.lines(word)) < count:
            late = time.monotonic() > give_up or self.popen.poll() is not None
            if late and len(self.lines(word)) < count:
                message = f"no {word!r} in the log: {self.stderr()}"
                raise AssertionError(message)
            time.sleep(0.005)
        return found

    def stderr(self) -> str:
        """What the process complained of."""
        return self.log.with_suffix(".stderr").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def finish(self) -> int:
        """SIGTERM, once the process handles it, and wait for the end."""
        self.wait_for("ready")
        self.popen.terminate()
        return self.popen.wait(PATIENCE)


class Processes:
    """All processes of a test; what still runs at its end is killed."""

    def __init__(
        self, loop: str, folder: Path, store: str = "sqlite", place: Place | None = None
    ) -> None:
        self.database = folder / "q.db"  # where the place is a file, this one
        self.place = new_place(store, folder) if place is None else place
        self.folder = folder
        self.started: list[Process] = []
        self.loop = loop

    def start(
        self,
        role: str,
        broken: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
        **settings: float,
    ) -> Process:
        """Start a process, which may be one that breaks at some `breaking.point`.

        ``through`` is a command that runs the one which follows it, somewhere else perhaps.
        """
        log = self.folder / f"{role}-{len(self.started)}.log"
        process = Process(role, self.loop, self.place, log, broken or {}, settings, through)
        self.started.append(process)
        return process

    def lines(self, word: str) -> list[list[str]]:
        """What follows a word in all logs."""
        return [line for process in self.started for line in process.lines(word)]

    def kill_all(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            process.kill()


def enqueue(place: Place, function: Callable[..., object], *arguments: object) -> str:
    """Enqueue one task, on a loop of its own."""

    async def main() -> str:
        async with TaskQueue(backend_at(place)) as queue:
            return await queue.enqueue(function, *arguments)

    return anyio.run(main)


def wait_for_status(place: Place, task_id: str, *statuses: str) -> str:
    """Wait until a task has one of these statuses."""
    give_up = time.monotonic() + PATIENCE
    while True:
        ((status,),) = query(place, f"SELECT status FROM tasks WHERE id = '{task_id}'")
        if status in statuses:
            return str(status)
        assert time.monotonic() < give_up, status
        time.sleep(0.02)


def counts(processes: Processes) -> list[tuple[object, ...]]:
    """Epoch, attempts and crashes of each task."""
    return query(processes.place, "SELECT epoch, attempts, crashes FROM tasks")


def check_total(database: Place, acknowledged: set[str], starts: list[list[str]]) -> dict[str, int]:
    """The total-queue check, once no worker runs any more and the queue was drained.

    Returns the figures for the log.
    """
    if isinstance(database, Path):
        assert query(database, "PRAGMA integrity_check") == [("ok",)]
        assert query(database, "SELECT count(*) FROM leases") == [(0,)]
    rows = query(database, "SELECT id, status, epoch, attempts, crashes, value FROM tasks")
    final = {str(row[0]) for row in rows if row[1] == "success"}
    others = Counter(str(row[1]) for row in rows if row[1] != "success")
    assert not others, f"not all succeeded: {others}"
    assert acknowledged <= final, f"lost: {sorted(acknowledged - final)[:5]}"
    started = Counter((task_id, int(epoch)) for task_id, epoch in starts)
    again = {key: count for key, count in started.items() if count > 1}
    assert not again, f"one epoch ran twice: {again}"
    assert final <= {task_id for task_id, _ in started}, "a success that nobody ran"
    for task_id, _, epoch, attempts, crashes, value in rows:
        # note() returns the epoch that it ran in, in msgpack: the accepted one is the last.
        assert value is not None
        assert attempts == 1, (task_id, attempts)
        assert 0 <= int(str(crashes)) <= int(str(epoch)) - 1
    reruns = len(started) - len(final)
    return {"tasks": len(rows), "acknowledged": len(acknowledged), "reruns": reruns}
