"""Workers and producers as processes of their own, to be killed by the tests.

Run as ``python programs.py ROLE LOOP DATABASE LOG [SETTING...]``. Each writes what it did to its
log, a line at a time, so that a kill loses at most what it had not done. See `breaking` for how
they are broken in the middle of a transaction.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio

from sitq import BackendConnectionError, RetryPolicy, TaskQueue, Worker, call, current_task, task
from sitq.ids import TaskId
from sitq.testing import FakeClock
from tests.faults.breaking import arm, stand_still
from tests.faults.places import backend_at, query

LOG = -1


def write(*words: object) -> None:
    """Append one line to the log in one system call."""
    os.write(LOG, (" ".join(map(str, words)) + "\n").encode())


def epoch() -> int:
    """The epoch of the attempt that the caller runs in."""
    return current_task()._task.epoch


@task
async def note(seconds: float) -> int:
    """Log the start, wait, give the epoch back."""
    write("start", current_task().id, epoch())
    await anyio.sleep(seconds)
    return epoch()


@task
async def linger(seconds: float) -> int:
    """Wait in the first attempt; log when each began and ended."""
    write("start", current_task().id, epoch())
    write("began", epoch(), time.monotonic())
    try:
        await anyio.sleep(seconds if epoch() == 1 else 0)
    finally:
        write("ended", epoch(), time.monotonic())
    return epoch()


@task
def note_in_thread(seconds: float) -> int:
    """Log the start, sleep, give the epoch back."""
    write("start", current_task().id, epoch())
    time.sleep(seconds)
    return epoch()


@task
async def hold(opened: str) -> int:
    """Log the start, and wait until a file exists."""
    write("start", current_task().id, epoch())
    while not Path(opened).exists():  # noqa: ASYNC110 - another process makes it
        await anyio.sleep(0.01)
    return epoch()


@task
def hold_a_thread(opened: str) -> int:
    """Log the start, and hold the thread until a file exists."""
    write("start", current_task().id, epoch())
    while not Path(opened).exists():
        time.sleep(0.01)
    return epoch()


@task
async def block(seconds: float) -> int:
    """Block the whole event loop."""
    write("start", current_task().id, epoch())
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose
    write("end", current_task().id, epoch())
    return epoch()


@task
async def swallow() -> None:
    """Refuse to be cancelled."""
    write("start", current_task().id, epoch())
    while True:
        try:
            await anyio.sleep(0.05)
        except BaseException:
            write("swallowed", current_task().id, epoch())


@task
async def quick() -> None:
    """Do nothing, so that the next ones are reserved ahead."""


@task
async def poison() -> None:
    """Kill the process that runs it."""
    write("start", current_task().id, epoch())
    os.kill(os.getpid(), signal.SIGKILL)


@task
async def fail() -> None:
    """Fail."""
    raise ValueError("no luck")


@task(retry=RetryPolicy(max_attempts=2, delay=0.05, jitter=0))
async def fail_once() -> int:
    """Fail in the first attempt; the delay keeps the next one out of the same transaction."""
    if current_task().attempt == 1:
        raise ValueError("no luck")
    return epoch()


def connected(database: str) -> Any:
    """A connection of the user's own to the server of a store."""
    import psycopg

    where, _, schema = database.partition("#")
    return psycopg.connect(where, options=f"-c search_path={schema}")


@task
def complete(database: str, breaks: str) -> int:
    """Complete itself; the first worker dies before or after the commit, or stands still there."""
    write("start", current_task().id, epoch())
    with connected(database) as connection:
        connection.execute("INSERT INTO notes VALUES ('paid')")
        current_task().complete_in_sync(connection, epoch())
        if breaks == "after":
            connection.commit()
        if epoch() == 1:
            write("broken", os.getpid())
            if breaks != "stands still":
                os._exit(9)
            stand_still()
        connection.commit()
    return epoch()


async def enqueuer(database: str, settings: dict[str, float]) -> None:
    """Enqueue a few tasks in one call, and say so."""
    async with TaskQueue(backend_at(database)) as queue:
        calls = [call(note, 0.0) for _ in range(int(settings.get("count", 3)))]
        for task_id in await queue.enqueue_many(calls):
            write("acknowledged", task_id)


async def canceller(database: str, settings: dict[str, float]) -> None:
    """Cancel all tasks that are not final."""
    async with TaskQueue(backend_at(database)) as queue:
        for (task_id,) in query(database, "SELECT id FROM tasks WHERE finished_at IS NULL"):
            write("cancelled", await queue.cancel(TaskId(task_id)))


async def reserver(database: str, settings: dict[str, float]) -> None:
    """Reserve what is due, and no more."""
    backend = backend_at(database)
    await backend.open()
    for each in (await backend.reserve("gone", ["default"], 9, 30.0)).tasks:
        write("reserved", each.id)


async def binder(database: str, settings: dict[str, float]) -> None:
    """Enqueue a task in a transaction of its own, and die before or after the commit."""
    async with TaskQueue(backend_at(database)) as queue:
        with connected(database) as connection:
            connection.execute("INSERT INTO notes VALUES ('ordered')")
            await queue.bind(connection).enqueue(note, 0.0)
            if settings["commits"]:
                connection.commit()
            write("broken", os.getpid())
            os._exit(9)


async def sweeper(database: str, settings: dict[str, float]) -> None:
    """Sweep once, with a clock that is ahead by so many seconds."""
    clock = FakeClock(datetime.now(UTC) + timedelta(seconds=settings["ahead"]))
    backend = backend_at(database, clock=clock)
    await backend.open()
    write("swept", *await backend.sweep(max_crashes=3))
    await backend.close()


async def worker(database: str, settings: dict[str, float]) -> None:
    """Run until SIGTERM."""
    options: dict[str, Any] = {"lease": 1.0, "max_crashes": 1000, "shutdown_timeout": 5.0}
    options |= settings
    options["max_crashes"] = int(options["max_crashes"])
    one = Worker(backend_at(database), max_concurrency=8, **options)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as listening:
            listening.start_soon(stop_on, signals, one)
            async with anyio.create_task_group() as working:
                await working.start(one.start)
                write("ready", os.getpid())
            listening.cancel_scope.cancel()


async def stop_on(signals: AsyncIterator[signal.Signals], one: Worker) -> None:
    """Stop the worker at each signal; what is said twice is meant once."""
    async with anyio.create_task_group() as group:
        async for _ in signals:
            write("term")
            group.start_soon(one.stop)


async def producer(database: str, settings: dict[str, float]) -> None:
    """Enqueue for ever, and log what was acknowledged; go on without the store if told to."""
    pause, ttl = settings.get("pause", 0.005), settings.get("result_ttl")
    ignored = (BackendConnectionError,) if settings.get("stubborn") else ()
    async with TaskQueue(backend_at(database)) as queue:
        write("ready", os.getpid())
        number = 0
        while True:
            number += 1
            try:
                ids = await enqueue(queue, number, ttl)
            except ignored:
                write("refused", number)
                ids = []
            for task_id in ids:
                write("acknowledged", task_id)
            await anyio.sleep(pause)


async def enqueue(queue: TaskQueue, number: int, ttl: float | None) -> list[TaskId[int]]:
    """Enqueue a task of one of two kinds, and now and then five in one call."""
    if number % 10 == 0:
        return await queue.enqueue_many([call(note, 0.001) for _ in range(5)])
    function = note if number % 2 else note_in_thread
    kept = queue.options(result_ttl=ttl)
    return [await kept.enqueue(function, 0.001 * (number % 7))]


ROLES = {
    "binder": binder,
    "canceller": canceller,
    "enqueuer": enqueuer,
    "producer": producer,
    "reserver": reserver,
    "sweeper": sweeper,
    "worker": worker,
}


def main() -> None:
    """Do what the command line says."""
    global LOG  # noqa: PLW0603 - one log a process
    role, loop, database, log, *settings = sys.argv[1:]
    LOG = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    values = {name: float(value) for name, value in (each.split("=") for each in settings)}
    arm(write)
    anyio.run(ROLES[role], database, values, backend=loop)


if __name__ == "__main__":
    # The functions must have the names by which the tests know them.
    from tests.faults import programs

    programs.main()
