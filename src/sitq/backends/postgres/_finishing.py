"""The unit of work that ends attempts."""

from __future__ import annotations

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

__all__ = ["finish", "finished_before"]

_RETURNS: Final = {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.MISS}
_FINAL: Final = {
    OutcomeKind.SUCCESS: "success",
    OutcomeKind.FAILURE: "failed",
    OutcomeKind.CANCELLED: "cancelled",
}


async def finish(work: Work, outcomes: Sequence[Outcome]) -> list[bool]:
    """End attempts, in one statement; of two outcomes for one lease the first is heard."""
    if not outcomes:
        return []
    firsts: dict[Lease, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.lease, outcome)
    # In one order everywhere, so that two batches that meet do not lock each other out.
    batch = [firsts[lease] for lease in sorted(firsts)]
    if all(outcome.kind is OutcomeKind.SUCCESS for outcome in batch):
        rows = await _succeed(work, batch)
    else:
        rows = await _finish(work, batch)
    for row in rows:
        work.changed.add("tasks" if row[2] == "pending" else "results")
    accepted = {(row[0], row[1]) for row in rows}
    return _answers(outcomes, accepted, firsts)


def _answers(
    outcomes: Sequence[Outcome],
    accepted: Collection[tuple[str, int]],
    firsts: Mapping[Lease, Outcome],
) -> list[bool]:
    return [outcome.lease in accepted and firsts[outcome.lease] is outcome for outcome in outcomes]


async def _succeed(work: Work, batch: list[Outcome]) -> list[Row]:
    return await work.rows(
        _sql.SUCCEED,
        work.moment,
        [outcome.task_id for outcome in batch],
        [outcome.epoch for outcome in batch],
        [outcome.value or b"" for outcome in batch],
        *work.news(["results"]),
    )


async def _finish(work: Work, batch: list[Outcome]) -> list[Row]:
    topics: set[Topic] = {"results"}
    if any(outcome.kind in _RETURNS for outcome in batch):
        topics.add("tasks")
    return await work.rows(
        _sql.FINISH,
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


async def finished_before(work: Work, outcomes: Sequence[Outcome]) -> list[bool] | None:
    """What a `finish` whose answer was lost has done; ``None``: nothing.

    A batch is one statement: while one of its attempts is open, none has been ended by it.
    """
    ids = [outcome.task_id for outcome in outcomes]
    rows = {row[0]: row[1:] for row in await work.rows(_sql.STANDINGS, ids)}
    open_ones = {(task_id, row[0]) for task_id, row in rows.items() if row[1] == "in_progress"}
    if any(outcome.lease in open_ones for outcome in outcomes):
        return None
    work.changed.update(("tasks", "results"))
    firsts: dict[Lease, Outcome] = {}
    for outcome in outcomes:
        firsts.setdefault(outcome.lease, outcome)
    accepted = {
        (outcome.task_id, outcome.epoch)
        for outcome in firsts.values()
        if outcome.task_id in rows and _bears(rows[outcome.task_id], outcome)
    }
    return _answers(outcomes, accepted, firsts)


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
