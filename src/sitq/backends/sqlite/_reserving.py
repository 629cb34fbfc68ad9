"""The unit of work that reserves due tasks."""

from __future__ import annotations

import json
import sqlite3
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sitq.backends._texts import UNREADABLE
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._rows import dump_rows, to_reserved
from sitq.models import ALL_QUEUES, Reservation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sitq.backends.sqlite._rows import Row
    from sitq.backends.sqlite._work import Work
    from sitq.models import ReservedTask

__all__ = ["Reserve", "reserve"]

# One that came as JSON.
_Row = list[Any]
_BEFORE_ALL: Final = -(2**63)
_SMALLEST_CHUNK: Final = 8
# Where these stand in a row.
_TIMEOUT: Final = 10
_PAYLOAD: Final = 13


class Reserve(NamedTuple):
    """A wish for due tasks."""

    worker: str
    queues: tuple[str, ...]
    limit: int
    lease: float


def reserve(work: Work, wishes: list[Reserve]) -> list[Reservation]:
    """Reserve due tasks for each wish in turn."""
    return [_reserve(work, wish) for wish in wishes]


def _reserve(work: Work, wish: Reserve) -> Reservation:
    rows, wait = _due(work, wish, work.now)
    tasks = _readable(work, rows)
    if tasks:
        started = _start(work, list(tasks))
        seqs = dump_rows(started)
        ends_at = work.now + round(wish.lease * 1_000_000)
        work.stored.difference_update(task.id for task in tasks.values())
        work.execute(_sql.INSERT_LEASES, {"rows": seqs, "worker": wish.worker, "ends_at": ends_at})
        return Reservation(tuple(tasks[seq] for seq in started), wait)
    return Reservation((), wait)


def _readable(work: Work, rows: list[_Row]) -> dict[int, ReservedTask]:
    """The tasks of the rows that can be read; the others are failed.

    Somebody may have written into the file by hand: such a row must not stand in the way of
    its neighbours.
    """
    tasks = {}
    for row in rows:
        try:
            tasks[row[0]] = to_reserved(row)
        except Exception:  # noqa: BLE001 - see above
            _fail(work, row[0])
    return tasks


def _start(work: Work, seqs: list[int]) -> list[int]:
    """Count a start of each task; those that cannot be started are failed and left out."""
    try:
        work.execute(_sql.MARK_RESERVED, {"rows": dump_rows(seqs), "now": work.now})
    except sqlite3.IntegrityError:
        if len(seqs) > 1:
            return [one for seq in seqs for one in _start(work, [seq])]
        _fail(work, seqs[0])
        return []
    return seqs


def _fail(work: Work, seq: int) -> None:
    work.execute(_sql.SET_UNREADABLE, {"seq": seq, "now": work.now, "error": UNREADABLE})
    work.changed.add("results")


def _due(work: Work, wish: Reserve, now: int) -> tuple[list[_Row], float | None]:
    """The due rows in order, and the seconds until the next one.

    Goes from priority to priority, each a seek in the index, so that tasks that are not due
    yet are never scanned. One row more than wished for tells if any are left.
    """
    levels = {queue: _level(work, queue, None) for queue in _queues(work, wish)}
    visited: list[tuple[str, int]] = []
    rows: list[_Row] = []
    while any(level is not None for level in levels.values()):
        priority = max(level for level in levels.values() if level is not None)
        here = [queue for queue, level in levels.items() if level == priority]
        missing = wish.limit + 1 - len(rows)
        if len(here) == 1:
            rows += _due_at(work, here[0], priority, now, missing)
        else:
            rows += _due_among(work, here, priority, now, missing)
        if len(rows) > wish.limit:
            return rows[: wish.limit], 0.0
        for queue in here:
            visited.append((queue, priority))
            levels[queue] = _level(work, queue, priority)
    return rows, _wait(work, visited, now)


def _queues(work: Work, wish: Reserve) -> list[str]:
    """The queues that may have tasks for a wish, each once."""
    if wish.queues == ALL_QUEUES:
        return [queue for (queue,) in work.rows(_sql.PENDING_QUEUES)]
    return list(dict.fromkeys(wish.queues))


def _level(work: Work, queue: str, below: int | None) -> int | None:
    """The highest priority in use in a queue, or the highest below another."""
    if below is None:
        row = work.execute(_sql.TOP_PRIORITY, (queue,)).fetchone()
    else:
        row = work.execute(_sql.NEXT_PRIORITY, (queue, below)).fetchone()
    return None if row is None else row[0]


def _due_at(work: Work, queue: str, priority: int, now: int, limit: int) -> list[_Row]:
    """The due rows of one queue and one priority."""
    where = {"queue": queue, "priority": priority, "now": now, "limit": limit}
    return _parsed(work, work.rows(_sql.DUE, where))


def _due_among(work: Work, queues: list[str], priority: int, now: int, limit: int) -> list[_Row]:
    """The due rows of one priority out of several queues, by eta and insertion.

    Only the keys that are needed to find them are read, from each queue's own part of the index.
    """
    chunk = max(_SMALLEST_CHUNK, 2 * limit // len(queues))
    keys = merge(*(_keys(work, queue, priority, now, chunk) for queue in queues))
    order = {seq: number for number, (_, seq) in enumerate(islice(keys, limit))}
    rows = _parsed(work, work.rows(_sql.DUE_ROWS, {"rows": dump_rows(list(order))}))
    return sorted(rows, key=lambda row: order[row[0]])


def _keys(work: Work, queue: str, priority: int, now: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Etas and numbers of the due tasks of one queue and one priority, in order."""
    where = {"queue": queue, "priority": priority, "now": now, "limit": chunk}
    last = (_BEFORE_ALL, 0)
    while True:
        found = work.rows(_sql.DUE_KEYS, {**where, "eta": last[0], "seq": last[1]})
        yield from found
        if len(found) < chunk:
            return
        last = found[-1]


def _parsed(work: Work, found: list[Row]) -> list[_Row]:
    """The rows of a JSON text."""
    ((text,),) = found
    rows: list[_Row] = json.loads(text)
    for row in rows:
        if row[_TIMEOUT] is not None:
            row[_TIMEOUT] = float(row[_TIMEOUT])
        shown = row[_PAYLOAD]
        # As hexadecimal digits, or too large to be shown.
        row[_PAYLOAD] = _payload(work, row[0]) if shown is None else bytes.fromhex(shown)
    return rows


def _payload(work: Work, seq: int) -> bytes:
    payload: bytes = work.execute(_sql.PAYLOAD, (seq,)).fetchone()[0]
    return payload


def _wait(work: Work, levels: list[tuple[str, int]], now: int) -> float | None:
    etas = [
        row[0]
        for queue, priority in levels
        if (
            row := work.execute(
                _sql.NEXT_ETA, {"queue": queue, "priority": priority, "now": now}
            ).fetchone()
        )
    ]
    return (min(etas) - now) / 1_000_000 if etas else None
