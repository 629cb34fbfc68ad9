"""Workers and producers as processes of their own, to be killed by the tests.

Run as ``python programs.py ROLE LOOP DATABASE LOG [SETTING...]``. Each writes what it did to its
log, a line at a time, so that a kill loses at most what it had not done. See `breaking` for how
they are broken in the middle of a transaction.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from sitq import (
    Admin,
    BackendConnectionError,
    RetryPolicy,
    TaskFilter,
    TaskQueue,
    Worker,
    call,
    current_task,
    task,
)
from sitq.ids import TaskId
from sitq.testing import FakeClock
from tests.faults.breaking import arm, stand_still
from tests.faults.places import backend_at, query

LOG = -1
QUEUES = ("a", "b")


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


@task
async def fail_noted() -> None:
    """Log the start, and fail."""
    write("start", current_task().id, epoch())
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


async def mixed_producer(database: str, settings: dict[str, float]) -> None:
    """Enqueue tasks that succeed and some that fail, in two queues, and log them."""
    async with TaskQueue(backend_at(database)) as queue:
        write("ready", os.getpid())
        for number in count():
            name = QUEUES[number % 2]
            some = queue.options(queue=name, result_ttl=1e6)
            failing = number % 20 < 2
            one = await (some.enqueue(fail_noted) if failing else some.enqueue(note, 0.001))
            write("acknowledged", one)
            await anyio.sleep(0.005)


async def obedient_worker(database: str, settings: dict[str, float]) -> None:
    """Serve two queues until an admin says stop."""
    one = Worker(
        backend_at(database), queues=QUEUES, max_concurrency=4, lease=1.0, max_crashes=1000
    )
    async with anyio.create_task_group() as working:
        await working.start(one.start)
        write("ready", os.getpid())


async def admin(database: str, settings: dict[str, float]) -> None:
    """Pause, resume, repeat, and order workers about, at random; log each act and its answer."""
    chance = random.Random(os.getpid())
    async with Admin(backend_at(database)) as one:
        write("ready", os.getpid())
        while True:
            await chance.choice(ACTS)(one, chance)
            await anyio.sleep(chance.uniform(0, 0.03))


async def pause_a_queue(one: Admin, chance: random.Random) -> None:
    """Pause a queue, or both, for a moment or until it is resumed."""
    for name in chance.choice([QUEUES[:1], QUEUES[1:], QUEUES]):
        seconds = chance.choice([None, 0.1, 0.3])
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        write("pausing", name, time.time())
        await one.pause_queue(name, reason="a test", until=until)
        write("paused", name, time.time(), until.timestamp() if until else "inf")


async def resume_a_queue(one: Admin, chance: random.Random) -> None:
    """Resume a queue."""
    name = chance.choice(QUEUES)
    write("resuming", name, time.time())
    await one.resume_queue(name)


async def repeat_what_failed(one: Admin, chance: random.Random) -> None:
    """Repeat all that has failed."""
    result = await one.retry_tasks(TaskFilter(status="failed"))
    write("repeated", result.done)


async def change_priorities(one: Admin, chance: random.Random) -> None:
    """Set the priority of what waits in a queue."""
    await one.set_priority(TaskFilter(queue=chance.choice(QUEUES)), chance.randrange(-5, 5))


async def order_a_worker(one: Admin, chance: random.Random) -> None:
    """Ask a worker to be quiet, to go on, or to stop."""
    workers = [each.id for each in await one.list_workers() if each.state != "lost"]
    if workers:
        act = chance.choice([one.quiet_worker, one.resume_worker, one.resume_worker])
        act = one.stop_worker if chance.random() < 0.2 else act
        write("ordered", act.__name__, await act(chance.choice(workers)))


ACTS = [
    pause_a_queue,
    resume_a_queue,
    resume_a_queue,
    resume_a_queue,
    repeat_what_failed,
    repeat_what_failed,
    change_priorities,
    order_a_worker,
]


async def enqueue(queue: TaskQueue, number: int, ttl: float | None) -> list[TaskId[int]]:
    """Enqueue a task of one of two kinds, and now and then five in one call."""
    if number % 10 == 0:
        return await queue.enqueue_many([call(note, 0.001) for _ in range(5)])
    function = note if number % 2 else note_in_thread
    kept = queue.options(result_ttl=ttl)
    return [await kept.enqueue(function, 0.001 * (number % 7))]


ROLES = {
    "admin": admin,
    "binder": binder,
    "canceller": canceller,
    "enqueuer": enqueuer,
    "mixed_producer": mixed_producer,
    "obedient_worker": obedient_worker,
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
