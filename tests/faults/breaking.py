"""Breaks this process at a named point: before a statement of the store's, or around its commit.

The point comes in the environment, so that any program can be broken: ``SITQ_BREAK`` holds
``ACTION|PLACE|TEXT``. ACTION is ``die`` (no cleaning up, as after SIGKILL) or ``stop`` (SIGSTOP).
PLACE is ``at`` (before the first statement that contains TEXT), ``commit`` (before the commit of
the transaction that contains it), ``committed`` (after that), ``answered`` (of PostgreSQL: when
the answer to it has come), or ``connect`` (of SQLite: before the file is opened for writing; TEXT
does not matter).
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import asyncpg

__all__ = ["arm", "point", "stand_still"]

VARIABLE = "SITQ_BREAK"


def stand_still() -> None:
    """Stop the process, until SIGCONT."""
    # To this thread, or it might get on for a moment before all of it stands still.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def point(action: str, place: str, text: str = "") -> dict[str, str]:
    """The environment of a process that is to break."""
    return {VARIABLE: f"{action}|{place}|{' '.join(text.split())}"}


def arm(tell: Callable[..., object]) -> None:
    """Break at the point that the environment names, if it names one; tell of it before."""
    words = os.environ.get(VARIABLE)
    if words is None:
        return
    action, place, text = words.split("|", 2)
    reached = False

    def break_here() -> None:
        nonlocal reached
        if reached:
            return
        reached = True
        tell("broken", os.getpid())
        if action == "die":
            os._exit(9)
        stand_still()

    _arm_sqlite(place, text, break_here)
    _arm_asyncpg(place, text, break_here)


def _arm_sqlite(place: str, text: str, break_here: Callable[[], None]) -> None:
    plain_connect = sqlite3.connect

    class Breaking(sqlite3.Connection):
        seen = False

        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            found = text in " ".join(sql.split())
            if place == "at" and found:
                break_here()
            if sql == "COMMIT":
                if self.seen and place == "commit":
                    break_here()
                cursor = super().execute(sql, parameters)
                if self.seen and place == "committed":
                    break_here()
                self.seen = False
                return cursor
            self.seen = (self.seen or found) and sql != "ROLLBACK"
            return super().execute(sql, parameters)

    def connect(database: str, **options: Any) -> sqlite3.Connection:
        if place == "connect" and "mode=rw" in database:
            break_here()
        return plain_connect(database, factory=Breaking, **options)

    sqlite3.connect = connect  # type: ignore[assignment]


def _arm_asyncpg(place: str, text: str, break_here: Callable[[], None]) -> None:
    """All that the store says goes through these two; the schema has its general name here."""
    plain: dict[str, Any] = {
        name: getattr(asyncpg.Connection, name) for name in ("fetch", "execute")
    }
    seen: set[int] = set()

    async def ask(name: str, connection: Any, sql: str, *values: Any) -> Any:
        found = text in re.sub(r'"test_\w+"', "sitq", " ".join(sql.split()))
        mine = id(connection) in seen
        ends = sql.startswith("COMMIT")
        if (place == "at" and found) or (place == "commit" and ends and mine):
            break_here()
        if found:
            seen.add(id(connection))
        elif ends or sql.startswith("ROLLBACK"):
            seen.discard(id(connection))
        answer = await plain[name](connection, sql, *values)
        if (place == "answered" and found and not _passed_over(answer)) or (
            place == "committed" and ends and mine
        ):
            break_here()
        return answer

    for name in plain:
        setattr(asyncpg.Connection, name, partialmethod(_swapped, name, ask))


def _passed_over(answer: Any) -> bool:
    """Tell if a statement has met a row that a heartbeat held, and is to be sent again."""
    return isinstance(answer, list) and any("held" in tuple(row) for row in answer)


def _swapped(connection: Any, name: str, ask: Any, sql: str, *values: Any) -> Any:
    return ask(name, connection, sql, *values)
