"""The unit of work that reserves due tasks."""

from __future__ import annotations

from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from sitq.backends._texts import UNREADABLE
from sitq.backends.postgres import _sql
from sitq.backends.postgres._finishing import finish_all
from sitq.backends.postgres._rows import to_reserved
from sitq.ids import TaskId
from sitq.models import Lease, Outcome, Reservation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.backends.postgres._driver import Row
    from sitq.backends.postgres._work import Work
    from sitq.models import ReservedTask

__all__ = ["Reserve", "reserve", "reserved_before"]

_SECOND: Final = timedelta(seconds=1)
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
    rows = await work.rows(
        _sql.RESERVE,
        work.moment,
        wish.worker,
        list(dict.fromkeys(wish.queues)),
        wish.limit,
        wish.lease,
        wish.ticket,
    )
    last = rows.pop()
    wait = None if last[-1] is None else last[-1] / _SECOND
    return [Reservation(await _readable(work, rows), wait)]


async def reserved_before(work: Work, wishes: Sequence[Reserve]) -> list[Reservation] | None:
    """What a `reserve` whose answer was lost has done; ``None``: nothing."""
    (wish,) = wishes
    rows = await work.rows(_sql.RESERVED, wish.ticket)
    return [Reservation(await _readable(work, rows), 0.0)] if rows else None


async def _readable(work: Work, rows: list[Row]) -> tuple[ReservedTask, ...]:
    """The tasks of the rows that can be read; the others are failed.

    Somebody may have written into the table by hand: such a row must not stand in the way of
    its neighbours.
    """
    rows.sort(key=_by_number)
    tasks: list[ReservedTask] = []
    failures: list[Outcome] = []
    for row in rows:
        try:
            tasks.append(to_reserved(row))
        except Exception:  # noqa: BLE001 - see above
            failures.append(Outcome.failure(Lease(TaskId(row[1]), row[4]), UNREADABLE))
    if failures:
        await finish_all(work, failures)
    return tuple(tasks)
