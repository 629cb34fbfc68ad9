"""The same work through other queues that need no server: ``python -m tests.benchmarks.peers``.

Each does what its own manual shows, with the settings in the table. A drain takes tasks and runs
them in one thread (sitq: on one loop): whatever the package has of threads and polling is left
out, to its advantage. A peer that is not installed is passed over.

Not here: those that need a server (Celery, RQ, Dramatiq, SAQ, procrastinate, pgqueuer), those
that keep nothing on disk (taskiq in memory), and liteq, whose worker begins two tasks a second.
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

from tests.benchmarks import floors, latencies, report, workloads
from tests.benchmarks.measuring import run_on
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


class Peer:
    """A queue to compare with; each measurement has a fresh folder.

    Args:
        name: the package.
        settings: what is not as the package has it by itself.
        promises: what becomes of results and of tasks whose worker dies.
        share: the share of the tasks that is enough for it, if it is slow.
    """

    def __init__(self, name: str, settings: str, promises: str, share: float = 1.0) -> None:
        self.name = name
        self.settings = settings
        self.promises = promises
        self.share = share
        self.version = ""

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
    """Measure all that are installed, side by side in each round, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    rounds, count = (1, 300) if options.quick else (options.rounds, 3_000)
    given = report.conditions(rounds)
    logging.disable()
    peers = [peer for peer in PEERS if peer.name == "sitq" or _is_installed(peer)]
    found: dict[tuple[Peer, str], list[float]] = {}
    base: dict[str, list[float]] = {"enqueue": [], "drain": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            base["enqueue"].append(floors.insert(Path(folder), "FULL", count))
            base["drain"].append(floors.drain(Path(folder), "FULL", count))
        for peer in peers:
            for what in WORK:
                tasks = max(20, int(count * peer.share * (0.05 if what == "round_trip" else 1)))
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    value = getattr(peer, what)(Path(folder), tasks)
                found.setdefault((peer, what), []).append(value)
    lines = _table(peers, found, base)
    text = "\n".join([", ".join(f"{name} {each}" for name, each in given.items()), "", *lines])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def _is_installed(peer: Peer) -> bool:
    peer.version = report.version_of(peer.name)
    return peer.version != report.MISSING


def _table(
    peers: list[Peer], found: dict[tuple[Peer, str], list[float]], base: dict[str, list[float]]
) -> list[str]:
    heads = ("queue", "settings", *(WORK[what] for what in WORK), "a worker that dies; results")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for peer in peers:
        cells = [f"{peer.name} {peer.version}", peer.settings]
        for what in WORK:
            values = found[peer, what]
            middle = report.number(statistics.median(values))
            spread = f"{report.number(min(values))} to {report.number(max(values))}"
            cells.append(f"{middle} ({spread})")
        lines.append("| " + " | ".join([*cells, peer.promises]) + " |")
    floor = [report.number(statistics.median(base[what])) for what in ("enqueue", "drain")]
    cells = ["raw sqlite3", "synchronous=FULL, a transaction each way", *floor, "", "the floor"]
    return [*lines, "| " + " | ".join(cells) + " |"]


if __name__ == "__main__":
    main()
