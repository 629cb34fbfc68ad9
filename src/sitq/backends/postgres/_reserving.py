"""The unit of work that reserves due tasks."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from sitq.backends._texts import UNREADABLE
from sitq.backends.postgres import _sql
from sitq.backends.postgres._rows import to_reserved
from sitq.models import ALL_QUEUES, Reservation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.backends.postgres._driver import Row
    from sitq.backends.postgres._work import Work
    from sitq.models import ReservedTask

__all__ = ["Reserve", "reserve", "reserved_before"]

_by_number: Final = itemgetter(0)


class Reserve(NamedTuple):
    """A wish for due tasks; ``ticket`` is a random number of its own."""

    worker: str
    queues: tuple[str, ...]
    limit: int
    lease: float
    ticket: int


async def reserve(work: Work, wishes: Sequence[Reserve]) -> list[Reservation]:
    """Reserve due tasks for one wish."""
    (wish,) = wishes
    last = (wish.limit, wish.lease, wish.ticket)
    if wish.queues == ALL_QUEUES:
        rows = await work.rows(_sql.RESERVE_ALL, work.moment, wish.worker, *last)
    else:
        queues = list(dict.fromkeys(wish.queues))
        rows = await work.rows(_sql.RESERVE, work.moment, wish.worker, queues, *last)
    wait = rows.pop()[-1]
    return [Reservation(await _readable(work, rows, wish.ticket), wait)]


async def reserved_before(work: Work, wishes: Sequence[Reserve]) -> list[Reservation] | None:
    """What a `reserve` whose answer was lost has done; ``None``: nothing."""
    (wish,) = wishes
    rows = await work.rows(_sql.RESERVED, wish.ticket)
    return [Reservation(await _readable(work, rows, wish.ticket), 0.0)] if rows else None


async def _readable(work: Work, rows: list[Row], ticket: int) -> tuple[ReservedTask, ...]:
    """The tasks of the rows that can be read; the others are failed.

    Somebody may have written into the table by hand: such a row must not stand in the way of
    its neighbours.
    """
    rows.sort(key=_by_number)
    tasks: list[ReservedTask] = []
    unreadable: list[str] = []
    for row in rows:
        try:
            tasks.append(to_reserved(row))
        except Exception:  # noqa: BLE001 - see above
            unreadable.append(row[1])
    if unreadable:
        await work.rows(_sql.FAIL_UNREADABLE, work.moment, unreadable, ticket, UNREADABLE)
        work.changed.add("results")
    return tuple(tasks)
