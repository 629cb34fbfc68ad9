"""The unit of work that ends attempts."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final

from sitq.backends.postgres import _sql
from sitq.backends.postgres._rows import storable
from sitq.models import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sitq.backends.postgres._driver import Row
    from sitq.backends.postgres._work import Work
    from sitq.models import Lease, Outcome
    from sitq.protocols import Topic

__all__ = ["finish", "finish_all", "finished_before"]

_lease: Final = itemgetter(0)
# In place of a status: somebody else holds the task.
_HELD: Final = "held"
_RETURNS: Final = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.MISS}
_FINAL: Final = {
    OutcomeKind.SUCCESS: "success",
    OutcomeKind.FAILURE: "failed",
    OutcomeKind.CANCELLED: "cancelled",
}


async def finish(work: Work, outcomes: Sequence[Outcome]) -> list[bool | None]:
    """End attempts, in one statement; of two outcomes for one lease the first is heard.

    ``None``: somebody else holds the task at this moment, and the outcome is to be sent again.
    """
    if not outcomes:
        return []
    firsts = _firsts(outcomes)
    batch = list(firsts.values())
    if all(outcome.kind is OutcomeKind.SUCCESS for outcome in batch):
        # Who completes a task in a transaction of their own reports no success besides: nobody
        # holds one of these for long.
        rows = await _succeed(work, batch)
    else:
        rows = await _finish(work, batch, _sql.FINISH)
    held = {(row[0], row[1]) for row in rows if row[2] == _HELD}
    return _answers(outcomes, firsts, _accepted(work, rows), held)


async def finish_all(work: Work, outcomes: Sequence[Outcome]) -> list[bool]:
    """End attempts, in one statement that waits for whoever holds one of them."""
    firsts = _firsts(outcomes)
    rows = await _finish(work, list(firsts.values()), _sql.FINISH_ALL)
    accepted = _accepted(work, rows)
    return [answer is True for answer in _answers(outcomes, firsts, accepted)]


def _firsts(outcomes: Sequence[Outcome]) -> dict[Lease, Outcome]:
    """The outcomes that are heard, in one order everywhere: no batches lock each other out."""
    firsts: dict[Lease, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.lease, outcome)
    return dict(sorted(firsts.items(), key=_lease))


def _accepted(work: Work, rows: list[Row]) -> set[tuple[str, int]]:
    """The leases whose outcomes have counted; what has changed with them is noted."""
    ended = [row for row in rows if row[2] != _HELD]
    work.changed.update("tasks" if row[2] == "pending" else "results" for row in ended)
    return {(row[0], row[1]) for row in ended}


def _answers(
    outcomes: Sequence[Outcome],
    firsts: Mapping[Lease, Outcome],
    accepted: Collection[tuple[str, int]],
    held: Collection[tuple[str, int]] = (),
) -> list[bool | None]:
    answers: list[bool | None] = []
    for outcome in outcomes:
        is_first = firsts[outcome.lease] is outcome
        answers.append(
            None if is_first and outcome.lease in held else is_first and outcome.lease in accepted
        )
    return answers


async def _succeed(work: Work, batch: list[Outcome]) -> list[Row]:
    return await work.rows(
        _sql.SUCCEED,
        work.moment,
        [outcome.task_id for outcome in batch],
        [outcome.epoch for outcome in batch],
        [outcome.value or b"" for outcome in batch],
        *work.news(["results"]),
    )


async def _finish(work: Work, batch: list[Outcome], statement: str) -> list[Row]:
    topics: set[Topic] = {"results"}
    if any(outcome.kind in _RETURNS for outcome in batch):
        topics.add("tasks")
    return await work.rows(
        statement,
        work.moment,
        [outcome.task_id for outcome in batch],
        [outcome.epoch for outcome in batch],
        [outcome.kind.value for outcome in batch],
        [outcome.value or b"" for outcome in batch],
        [storable(outcome.error) for outcome in batch],
        [storable(outcome.traceback) for outcome in batch],
        [outcome.delay for outcome in batch],
        *work.news(sorted(topics)),
    )


async def finished_before(work: Work, outcomes: Sequence[Outcome]) -> list[bool | None] | None:
    """What a `finish` whose answer was lost has done; ``None``: nothing.

    A batch is one statement. An attempt that is still open was passed over by it, or all are.
    """
    ids = [outcome.task_id for outcome in outcomes]
    rows = {row[0]: row[1:] for row in await work.rows(_sql.STANDINGS, ids)}
    open_ones = {(task_id, row[0]) for task_id, row in rows.items() if row[1] == "in_progress"}
    if all(outcome.lease in open_ones for outcome in outcomes):
        return None
    work.changed.update(("tasks", "results"))
    firsts = _firsts(outcomes)
    accepted = {
        (outcome.task_id, outcome.epoch)
        for outcome in firsts.values()
        if outcome.task_id in rows and _bears(rows[outcome.task_id], outcome)
    }
    return _answers(outcomes, firsts, accepted, open_ones)


def _bears(row: Row, outcome: Outcome) -> bool:
    """Tell if a task looks as this outcome leaves it."""
    epoch, status, error, _ = row
    if epoch != outcome.epoch:
        # It has gone on since. Only what has made it pending can have let it.
        return epoch > outcome.epoch and outcome.kind in _RETURNS
    if outcome.kind is OutcomeKind.RETRY:
        spent = status == "failed" and error == storable(outcome.error)
        return spent or status in {"pending", "cancelled"}
    if outcome.kind in _RETURNS:
        return status in {"pending", "cancelled"}
    if outcome.kind is OutcomeKind.FAILURE:
        return bool(status == "failed" and error == storable(outcome.error))
    return bool(status == _FINAL[outcome.kind])
