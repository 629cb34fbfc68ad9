"""Money that moves exactly once, though the workers are killed all the time.

A task may start twice. Its effects count once if they are written in the same transaction as its
success: `complete_in` records that, fenced by the lease. And an order exists if and only if its
task does: both are written in one transaction too, by `bind`.

    python examples/transfer_money.py [URL [ORDERS]]

URL is that of a new store, `sqlite:///bank.db` or `postgresql://user@host/database` say; without
one, a temporary file is used. PostgreSQL needs the extra `postgres`, and psycopg.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import anyio

import sitq
from sitq import RetryPolicy, SyncTaskQueue, TaskStatus, Worker, current_task, task
from sitq.transactions import SyncConnection

ACCOUNTS = 5
START = 1000
URL = os.environ.get("BANK_URL", "")


class Bank(SyncConnection, Protocol):
    """A connection with a transaction open: what sqlite3's and psycopg's have in common."""

    def execute(self, query: Any, params: Any = ..., /) -> Any:
        """Run one statement."""
        ...


@contextmanager
def transaction(url: str) -> Generator[Bank, None, None]:
    """Open the bank's database; commit at the end, or roll back what an exception has ended."""
    if url.startswith(("postgresql:", "postgres:")):
        import psycopg

        with psycopg.connect(url, cursor_factory=psycopg.RawCursor) as bank:
            yield bank
    else:
        path = url.removeprefix("sqlite:///").partition("?")[0]
        # Who is going to write says so at once, and then waits for its turn before it begins.
        with closing(sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE")) as file, file:
            yield file


def run(bank: Bank, statement: str, *values: int) -> Any:
    """Run one statement; where PostgreSQL writes $1 and so on, SQLite writes a question mark."""
    if isinstance(bank, sqlite3.Connection):
        statement = re.sub(r"\$\d", "?", statement)
    return bank.execute(statement, values)


@task(retry=RetryPolicy(max_attempts=100, delay=0.05, factor=1))
def transfer(source: int, target: int, amount: int) -> int:
    """Move money from one account to another."""
    with transaction(URL) as bank:
        # In one order everywhere, so that two transfers never wait for each other.
        for number, change in sorted([(source, -amount), (target, amount)]):
            run(
                bank, "UPDATE accounts SET balance = balance + $1 WHERE number = $2", change, number
            )
            time.sleep(random.uniform(0, 0.01))  # a kill here would lose the money
        current_task().complete_in_sync(bank, amount)
    return amount  # of no account any more: the task has succeeded with the commit


async def work() -> None:
    """Be a worker, until killed."""
    # Its workers being killed is no fault of a task here, so it is not given up for that.
    await Worker(sitq.connect(URL), lease=2.0, max_concurrency=4, max_crashes=1000).start()


def prepare(url: str) -> None:
    """Make the bank's tables beside the tasks."""
    with transaction(url) as bank:
        run(bank, "CREATE TABLE accounts (number INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
        run(bank, "CREATE TABLE orders (source INTEGER, target INTEGER, amount INTEGER)")
        for number in range(ACCOUNTS):
            run(bank, "INSERT INTO accounts VALUES ($1, $2)", number, START)


def order(queue: SyncTaskQueue, url: str, count: int) -> list[str]:
    """Place orders, each together with its task; every fifth customer changes their mind."""
    ids: list[str] = []
    for number in range(count):
        source, target = random.sample(range(ACCOUNTS), 2)
        amount = random.randint(1, 100)
        with suppress(KeyError), transaction(url) as bank:
            run(bank, "INSERT INTO orders VALUES ($1, $2, $3)", source, target, amount)
            task_id = queue.bind(bank).enqueue(transfer, source, target, amount)
            if number % 5 == 4:
                raise KeyError("neither the order nor the task comes to be")
            ids.append(task_id)
    return ids


def hire(url: str) -> subprocess.Popen[bytes]:
    """Start a worker process."""
    return subprocess.Popen([sys.executable, __file__, "work"], env={**os.environ, "BANK_URL": url})


def wait_and_kill(queue: SyncTaskQueue, url: str, ids: Sequence[str]) -> int:
    """Wait for the tasks, and kill -9 a worker every moment; return how many were killed."""
    workers = [hire(url), hire(url)]
    kills = 0
    try:
        for task_id in ids:
            # The first one dies while it starts; the later ones live long enough to do something.
            while queue.get_result(task_id, random.uniform(0.2, 0.2 + 0.1 * kills)) is None:
                victim = random.randrange(len(workers))
                assert workers[victim].poll() is None, "a worker has ended by itself"
                workers[victim].send_signal(signal.SIGKILL)
                workers[victim].wait()
                workers[victim] = hire(url)
                kills += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return kills


def check(url: str) -> tuple[int, int]:
    """Compare the balances with the orders; return the sum of all money, and how many orders."""
    with transaction(url) as bank:
        orders = run(bank, "SELECT source, target, amount FROM orders").fetchall()
        balances = dict(run(bank, "SELECT number, balance FROM accounts").fetchall())
    expected = Counter(dict.fromkeys(range(ACCOUNTS), START))
    for source, target, amount in orders:
        expected[source] -= amount
        expected[target] += amount
    assert balances == dict(expected), f"{balances} is not {dict(expected)}"
    return sum(balances.values()), len(orders)


def main(url: str, count: int) -> None:
    """Run the whole story."""
    with SyncTaskQueue(sitq.connect(url)) as queue:  # makes the store, so that ours goes into it
        prepare(url)
        ids = order(queue, url, count)
        kills = wait_and_kill(queue, url, ids)
        attempts = Counter(queue.get_task(task_id).status for task_id in ids)
        crashes = sum(queue.get_task(task_id).crashes for task_id in ids)
    total, orders = check(url)
    assert attempts == {TaskStatus.SUCCESS: len(ids)}, attempts
    assert orders == len(ids)
    print(f"{orders} transfers, {kills} workers killed, {crashes} attempts lost with them")
    print(f"{total} in all accounts, as at the start; each account as its orders say")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments == ["work"]:
        anyio.run(work)
    else:
        orders_to_place = int(arguments[1]) if len(arguments) > 1 else 300
        with tempfile.TemporaryDirectory() as folder:
            store = arguments[0] if arguments else f"sqlite:///{Path(folder) / 'bank.db'}"
            main(store, orders_to_place)
