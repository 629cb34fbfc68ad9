"""The same work through other queues on one PostgreSQL server; see `tests.benchmarks.peers`.

Each has a database of its own for each measurement, on the same server with the same settings, and
does what its own manual shows. Workers run in this process, on the loop of the one who enqueues.
A round trip ends when the task runs.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sitq import TaskQueue, Worker, call
from sitq.backends.postgres import PostgresBackend
from tests.benchmarks import postgres, postgres_floors
from tests.benchmarks.peers_table import Package

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["FLOOR", "PEERS", "WORK", "Peer", "floor"]

WORK = {
    "enqueue": "enqueue, tasks/s",
    "enqueue_many": "1,000 a call, tasks/s",
    "drain": "drain, tasks/s",
    "round_trip": "until it runs, in one process, p50 ms",
}
FLOOR = ("raw asyncpg", "a transaction each way; executemany", "the floor")
BATCH = 1000
AT_ONCE = 100
# What is fast is measured with so many times as many tasks.
MORE = 5
PAUSE = 0.005


def floor(what: str, count: int) -> float | None:
    """What raw asyncpg does."""
    work = {
        "enqueue": postgres_floors.insert,
        "enqueue_many": postgres_floors.insert_many,
        "drain": postgres_floors.drain,
    }.get(what)
    return None if work is None else work(count)


class Opened:
    """A queue that is open: how to put tasks in, and how to run them.

    ``many`` is None where a package stores one task a call only. ``work`` runs tasks until it is
    cancelled; ``drain`` until none is left.
    """

    def __init__(
        self,
        one: Callable[[], Awaitable[object]],
        many: Callable[[int], Awaitable[object]] | None,
        drain: Callable[[], Awaitable[object]],
        work: Callable[[], Awaitable[object]],
    ) -> None:
        self.one = one
        self.many = many
        self.drain = drain
        self.work = work


class Peer(Package):
    """One that keeps its tasks in PostgreSQL; `Package` has the parameters."""

    def __init__(self, name: str, settings: str, promises: str, share: float = 1.0) -> None:
        super().__init__(name, settings, promises, share)
        self.ended = 0
        self.each: asyncio.Event | None = None

    def measure(self, what: str, count: int) -> float | None:
        """One measurement, in a fresh database; None if the package has no such thing."""
        with_database = partial(self._in_database, getattr(self, f"_{what}"), count)
        return asyncio.run(with_database())

    async def _in_database(self, work: Any, count: int) -> float | None:
        name = f"peers_{secrets.token_hex(4)}"
        root = await _connect(postgres.dsn())
        await root.execute(f"CREATE DATABASE {name}")
        self.ended, self.each = 0, None
        parts = urlsplit(postgres.dsn())
        try:
            async with self.open(parts._replace(path=f"/{name}").geturl()) as opened:
                found: float | None = await work(opened, count)
                return found
        finally:
            await root.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await root.execute("CHECKPOINT")
            await root.close()

    async def nothing(self, *_: object, **__: object) -> None:
        """Do nothing but tell who measures."""
        self.ended += 1
        if self.each is not None:
            self.each.set()

    async def _enqueue(self, opened: Opened, count: int) -> float:
        await opened.one()
        start = time.perf_counter()
        for _ in range(count):
            await opened.one()
        return count / (time.perf_counter() - start)

    async def _enqueue_many(self, opened: Opened, count: int) -> float | None:
        if opened.many is None:
            return None
        await opened.many(BATCH)
        start = time.perf_counter()
        for _ in range(0, count * MORE, BATCH):
            await opened.many(BATCH)
        return count * MORE / (time.perf_counter() - start)

    async def _drain(self, opened: Opened, count: int) -> float:
        if self.share == 1:
            count *= MORE
        for _ in range(0, count, AT_ONCE):
            if opened.many is not None:
                await opened.many(AT_ONCE)
            else:
                await asyncio.gather(*(opened.one() for _ in range(AT_ONCE)))
        start = time.perf_counter()
        await opened.drain()
        rate = self.ended / (time.perf_counter() - start)
        if self.ended < count:
            raise AssertionError(f"{self.name} ran {self.ended} of {count} tasks")
        return rate

    async def _round_trip(self, opened: Opened, count: int) -> float:
        self.each, times = asyncio.Event(), []
        working = asyncio.ensure_future(opened.work())
        for _ in range(count + 1):
            await asyncio.sleep(PAUSE)
            self.each.clear()
            start = time.perf_counter()
            await opened.one()
            async with asyncio.timeout(30):
                await self.each.wait()
            times.append((time.perf_counter() - start) * 1000)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return statistics.median(times[1:])  # the first one may have waited for the worker

    def open(self, dsn: str) -> Any:
        """Make its tables, and open it: an async context manager of an `Opened`."""
        raise NotImplementedError


class Sitq(Peer):
    """This package."""

    def __init__(self) -> None:
        super().__init__("sitq", "100 at once", "runs again when its lease ends; result kept")

    @asynccontextmanager
    async def open(self, dsn: str) -> AsyncIterator[Opened]:
        """See `Peer.open`."""
        MEASURED[:] = [self]
        backend = PostgresBackend(dsn)
        worker = Worker(backend, tasks=[nothing], max_concurrency=AT_ONCE, poll_interval=60)
        async with TaskQueue(backend) as queue:
            yield Opened(
                lambda: queue.enqueue(nothing),
                lambda count: queue.enqueue_many([call(nothing)] * count),
                worker.drain,
                worker.start,
            )


MEASURED: list[Peer] = []


async def nothing() -> None:
    """Do nothing but tell who measures."""
    await MEASURED[0].nothing()


class Procrastinate(Peer):
    """procrastinate on psycopg: no results; finished jobs stay as rows."""

    def __init__(self) -> None:
        promises = "its job stays as begun until you look for stalled ones; none"
        super().__init__("procrastinate", "concurrency=100, pool of 10", promises, share=0.4)

    @asynccontextmanager
    async def open(self, dsn: str) -> AsyncIterator[Opened]:
        """See `Peer.open`."""
        module = importlib.import_module("procrastinate")
        app = module.App(connector=module.PsycopgConnector(conninfo=dsn, max_size=10))
        task = app.task(name="nothing")(self.nothing)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            run = partial(app.run_worker_async, concurrency=AT_ONCE, install_signal_handlers=False)
            yield Opened(
                task.defer_async,
                lambda count: task.batch_defer_async(*[{}] * count),
                partial(run, wait=False),
                run,
            )


class PgQueuer(Peer):
    """pgqueuer on asyncpg: no results; a finished job leaves a line in its log."""

    def __init__(self) -> None:
        promises = "runs again when its heartbeat is old; none"
        super().__init__("pgqueuer", "batch_size=100, all tables logged", promises)

    @asynccontextmanager
    async def open(self, dsn: str) -> AsyncIterator[Opened]:
        """See `Peer.open`."""
        module = importlib.import_module("pgqueuer")
        drivers = importlib.import_module("pgqueuer.db")
        modes = importlib.import_module("pgqueuer.domain.types").QueueExecutionMode
        async with AsyncExitStack() as stack:
            connections = [await _connect(dsn) for _ in range(2)]
            for connection in connections:
                stack.push_async_callback(connection.close)
            queries = module.Queries(drivers.AsyncpgDriver(connections[0]))
            await queries.install()
            worker = module.PgQueuer(drivers.AsyncpgDriver(connections[1]))
            worker.entrypoint("nothing")(self._job)
            run = partial(worker.run, batch_size=AT_ONCE)
            yield Opened(
                lambda: queries.enqueue("nothing", None),
                lambda n: queries.enqueue(["nothing"] * n, [None] * n, [0] * n),
                partial(run, mode=modes.drain),
                run,
            )

    async def _job(self, job: object) -> None:
        await self.nothing(job)


class Saq(Peer):
    """SAQ's PostgreSQL queue on psycopg: the result is kept for ten minutes."""

    def __init__(self) -> None:
        promises = "ended or run again by a sweep, if it has retries left; result kept 10 minutes"
        super().__init__("saq", "concurrency=100, pool of 20", promises, share=0.4)

    @asynccontextmanager
    async def open(self, dsn: str) -> AsyncIterator[Opened]:
        """See `Peer.open`."""
        module = importlib.import_module("saq")
        queue = importlib.import_module("saq.queue.postgres").PostgresQueue.from_url(dsn)
        functions = [("nothing", self.nothing)]
        await queue.connect()
        stored = 0

        async def one() -> None:
            nonlocal stored
            stored += 1
            await queue.enqueue("nothing")

        async def work() -> None:
            await module.Worker(queue, functions, concurrency=AT_ONCE).start()

        async def drain() -> None:
            # Its own way to stop when nothing is left stops before that, with so many at once.
            working = asyncio.ensure_future(work())
            while self.ended < stored:  # noqa: ASYNC110 - the task must stay a plain one
                await asyncio.sleep(PAUSE)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

        try:
            yield Opened(one, None, drain, work)
        finally:
            await queue.disconnect()


async def _connect(dsn: str) -> Any:
    return await importlib.import_module("asyncpg").connect(dsn)


PEERS: tuple[Peer, ...] = (Sitq(), Procrastinate(), PgQueuer(), Saq())
