"""The same work through other queues: ``python -m tests.benchmarks.peers``.

Two tables: queues that need no server, and those on PostgreSQL (`tests.benchmarks.peers_postgres`).
Each does what its own manual shows, with the settings in the table. A drain takes tasks and runs
them in one thread (sitq: on one loop): whatever the package has of threads and polling is left
out, to its advantage. A peer that is not installed is passed over.

Not here: those that need a broker (Celery, RQ, Dramatiq), those that keep nothing on disk (taskiq
in memory), and liteq, whose worker begins two tasks a second.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import floors, latencies, peers_postgres, postgres, report, workloads
from tests.benchmarks.measuring import run_on
from tests.benchmarks.peers_table import Found, Package, is_installed, share, table
from tests.benchmarks.stores import Durability, store_in

__all__ = ["PEERS", "Peer", "main"]

# Seconds between two looks of those that have to look.
POLL = 0.005
WORK = {
    "enqueue": "enqueue, tasks/s",
    "drain": "drain, tasks/s",
    "round_trip": "round trip in one process, p50 ms",
}
KEPT = "runs again when its lease ends; result kept"
LOSES = "its task is lost; result kept"
RETURNED = "its item comes back at the next start; none"
STAYS = "its message stays locked; none"
LOSES_ALL = "its job is lost; none"


def nothing() -> None:
    """Do nothing."""


Opened = tuple[Callable[[], object], Callable[[], bool]]


class Peer(Package):
    """One that needs no server; each measurement has a fresh folder."""

    def enqueue(self, place: Path, count: int) -> float:
        """Tasks a second, one after the other."""
        put, _ = self.open(place)
        start = time.perf_counter()
        for _ in range(count):
            put()
        return count / (time.perf_counter() - start)

    def drain(self, place: Path, count: int) -> float:
        """No-op tasks a second, taken and run by one thread."""
        put, take = self.open(place)
        for _ in range(count):
            put()
        start = time.perf_counter()
        for _ in range(count):
            if not take():
                raise AssertionError(f"{self.name} lost a task")
        return count / (time.perf_counter() - start)

    def round_trip(self, place: Path, count: int) -> float:
        """Milliseconds from enqueue to the end of the task in another thread, in the middle."""
        put, take = self.open(place)
        ended, stopping = threading.Event(), threading.Event()
        times = []

        def work() -> None:
            while not stopping.is_set():
                if take():
                    ended.set()
                else:
                    time.sleep(POLL)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(count):
            time.sleep(POLL)
            ended.clear()
            start = time.perf_counter()
            put()
            ended.wait()
            times.append((time.perf_counter() - start) * 1000)
        stopping.set()
        thread.join()
        return statistics.median(times)

    def open(self, place: Path) -> Opened:
        """How to put a task in, and how to take one and run it; that tells if there was one."""
        raise NotImplementedError


class Sitq(Peer):
    """This package."""

    def __init__(self, durability: Durability) -> None:
        super().__init__("sitq", f"synchronous={durability}, 100 at once", KEPT)
        self._durability = durability

    def enqueue(self, place: Path, count: int) -> float:
        """See `Peer.enqueue`."""
        store = store_in(place, self._durability)
        return float(run_on("asyncio", workloads.enqueue_one, store, count))

    def drain(self, place: Path, count: int) -> float:
        """See `Peer.drain`."""
        store = store_in(place, self._durability)
        return float(run_on("asyncio", workloads.drain, store, count, 100))

    def round_trip(self, place: Path, count: int) -> float:
        """See `Peer.round_trip`."""
        store = store_in(place, self._durability)
        times: list[float] = run_on("asyncio", latencies.round_trips_here, store, count)
        return statistics.median(times)


class Huey(Peer):
    """huey on SQLite; a result of ``None`` is stored too."""

    def __init__(self, *, fsync: bool) -> None:
        durability = "FULL" if fsync else "OFF"
        super().__init__("huey", f"fsync={fsync} (synchronous={durability})", LOSES)
        self._fsync = fsync

    def open(self, place: Path) -> Opened:
        """See `Peer.open`."""
        huey = importlib.import_module("huey").SqliteHuey(
            filename=str(place / "huey.db"), fsync=self._fsync, store_none=True
        )

        def take() -> bool:
            task = huey.dequeue()
            if task is not None:
                huey.execute(task)
            return task is not None

        return huey.task()(nothing), take


class PersistQueue(Peer):
    """persist-queue: no functions and no results; an item is acknowledged after its work."""

    def __init__(self) -> None:
        super().__init__("persist-queue", "SQLiteAckQueue (synchronous=FULL)", RETURNED)

    def open(self, place: Path) -> Opened:
        """See `Peer.open`."""
        module = importlib.import_module("persistqueue")
        queue = module.SQLiteAckQueue(str(place), auto_commit=True, multithreading=True)

        def take() -> bool:
            try:
                item = queue.get(block=False)
            except module.Empty:
                return False
            nothing()
            queue.ack(item)
            return True

        return lambda: queue.put({"function": "nothing", "args": []}), take


class LiteQueue(Peer):
    """litequeue: no functions and no results; a message is marked as done after its work."""

    def __init__(self) -> None:
        super().__init__("litequeue", "synchronous=NORMAL (its own choice)", STAYS)

    def open(self, place: Path) -> Opened:
        """See `Peer.open`."""
        module = importlib.import_module("litequeue")
        queue = module.LiteQueue(str(place / "lite.db"))
        lock = threading.Lock()  # it has one connection for all threads

        def put() -> None:
            with lock:
                queue.put("nothing")

        def take() -> bool:
            with lock:
                message = queue.pop()
            if message is None:
                return False
            nothing()
            with lock:
                queue.done(message.message_id)
            return True

        return put, take


class APScheduler(Peer):
    """APScheduler 3 with a job store on SQLite: jobs that are due at once; no results."""

    def __init__(self) -> None:
        settings = "SQLAlchemyJobStore (rollback journal, synchronous=FULL)"
        super().__init__("APScheduler", settings, LOSES_ALL, share=0.05)

    def open(self, place: Path) -> Opened:
        """See `Peer.open`: its own thread runs the jobs."""
        scheduler = self._scheduler(place)
        scheduler.start(paused=True)
        return lambda: scheduler.add_job(nothing, misfire_grace_time=None), lambda: False

    def drain(self, place: Path, count: int) -> float:
        """See `Peer.drain`."""
        scheduler = self._scheduler(place)
        scheduler.start(paused=True)
        for _ in range(count):
            scheduler.add_job(nothing, misfire_grace_time=None)
        ended = threading.Semaphore(0)
        scheduler.add_listener(lambda _: ended.release(), self._executed())
        start = time.perf_counter()
        scheduler.resume()
        for _ in range(count):
            ended.acquire()
        rate = count / (time.perf_counter() - start)
        scheduler.shutdown()
        return rate

    def round_trip(self, place: Path, count: int) -> float:
        """See `Peer.round_trip`."""
        scheduler = self._scheduler(place)
        ended, times = threading.Event(), []
        scheduler.add_listener(lambda _: ended.set(), self._executed())
        scheduler.start()
        for _ in range(count):
            time.sleep(POLL)
            ended.clear()
            start = time.perf_counter()
            scheduler.add_job(nothing, misfire_grace_time=None)
            ended.wait()
            times.append((time.perf_counter() - start) * 1000)
        scheduler.shutdown()
        return statistics.median(times)

    def _scheduler(self, place: Path) -> Any:
        background = importlib.import_module("apscheduler.schedulers.background")
        scheduler = background.BackgroundScheduler(timezone="UTC")
        scheduler.add_jobstore("sqlalchemy", url=f"sqlite:///{place}/jobs.db")
        return scheduler

    def _executed(self) -> Any:
        return importlib.import_module("apscheduler.events").EVENT_JOB_EXECUTED


PEERS: tuple[Peer, ...] = (
    Sitq("FULL"),
    Sitq("NORMAL"),
    Huey(fsync=True),
    Huey(fsync=False),
    PersistQueue(),
    LiteQueue(),
    APScheduler(),
)


def main() -> None:
    """Measure all that are installed, side by side in each round, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", choices=["sqlite", "postgres"], help="both unless given")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    options = parser.parse_args()
    rounds, count = (1, 300) if options.quick else (options.rounds, 3_000)
    given = report.conditions(rounds)
    logging.disable()
    tables = []
    if options.store != "postgres":
        tables.append(_without_server(rounds, count))
    if options.store != "sqlite":
        given |= postgres.conditions()
        tables.append(_with_server(rounds, count))
    text = ", ".join(f"{name} {each}" for name, each in given.items())
    for lines in tables:
        text += "\n\n" + "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def _without_server(rounds: int, count: int) -> list[str]:
    peers = [peer for peer in PEERS if peer.name == "sitq" or is_installed(peer)]
    found: Found = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            floor = {
                "enqueue": floors.insert(Path(folder), "FULL", count),
                "drain": floors.drain(Path(folder), "FULL", count),
            }
        for what, value in floor.items():
            found.setdefault((None, what), []).append(value)
        for peer in peers:
            for what in WORK:
                tasks = share(peer.share, what, count)
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    value = getattr(peer, what)(Path(folder), tasks)
                found.setdefault((peer, what), []).append(value)
    ours = ("raw sqlite3", "synchronous=FULL, a transaction each way", "the floor")
    return table(peers, WORK, found, ours)


def _with_server(rounds: int, count: int) -> list[str]:
    peers = [peer for peer in peers_postgres.PEERS if peer.name == "sitq" or is_installed(peer)]
    found: Found = {}
    for _ in range(rounds):
        for what in peers_postgres.WORK:
            if (floor := peers_postgres.floor(what, count)) is not None:
                found.setdefault((None, what), []).append(floor)
            for peer in peers:
                value = peer.measure(what, share(peer.share, what, count))
                if value is not None:
                    found.setdefault((peer, what), []).append(value)
    return table(peers, peers_postgres.WORK, found, peers_postgres.FLOOR)


if __name__ == "__main__":
    main()
