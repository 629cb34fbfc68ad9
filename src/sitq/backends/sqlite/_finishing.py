"""The units of work that end attempts and cancel tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._inserts import RELEASE_KEY
from sitq.backends.sqlite._rows import cut, dump_rows
from sitq.errors import TaskNotFoundError
from sitq.models import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sitq.backends.sqlite._work import Work
    from sitq.ids import TaskId

__all__ = ["cancel", "finish"]


def finish(work: Work, outcomes: list[Outcome]) -> list[bool]:
    """End attempts, in one statement where all of them went well."""
    work.ended += [outcome.task_id for outcome in outcomes]
    is_well = all(outcome.kind is OutcomeKind.SUCCESS for outcome in outcomes)
    if outcomes and is_well and _succeed(work, outcomes):
        work.changed.add("results")
        return [True] * len(outcomes)
    return [_finish_one(work, outcome) for outcome in outcomes]


def _succeed(work: Work, outcomes: list[Outcome]) -> bool:
    """Store a batch of successes, or nothing if one of them is not acceptable."""
    values = [outcome.value or b"" for outcome in outcomes]
    if values.count(values[0]) == len(values):
        statement = _sql.SUCCEED_ALIKE
        rows = dump_rows({outcome.task_id: outcome.epoch for outcome in outcomes})
        parameters = {"rows": rows, "value": values[0], "now": work.now}
    else:
        statement = _sql.SUCCEED_BATCH
        blob, places = cut(values)
        rows = dump_rows(
            {
                outcome.task_id: (outcome.epoch, *place)
                for outcome, place in zip(outcomes, places, strict=True)
            }
        )
        parameters = {"rows": rows, "blob": blob, "now": work.now}
    is_batch = len(outcomes) > 1  # of one alone, there is nothing to take back
    if is_batch:
        work.execute("SAVEPOINT batch")
    # Of two outcomes for one task, one got lost in the rows: then each is judged by itself.
    is_accepted = work.execute(statement, parameters).rowcount == len(outcomes)
    if is_accepted:
        work.execute(_sql.DELETE_LEASES, {"rows": rows})
    elif is_batch:
        work.execute("ROLLBACK TO batch")
    if is_batch:
        work.execute("RELEASE batch")
    return is_accepted


def _finish_one(work: Work, outcome: Outcome) -> bool:
    attempt = work.execute(
        _sql.OPEN_ATTEMPT, {"id": outcome.task_id, "epoch": outcome.epoch}
    ).fetchone()
    if attempt is None:
        return False
    seq, attempts, max_attempts, cancelled = attempt
    kind = outcome.kind
    eta = work.now + round(outcome.delay * 1_000_000)
    if kind is OutcomeKind.RETRY and max_attempts is not None and attempts >= max_attempts:
        kind = OutcomeKind.FAILURE
    if cancelled and kind in {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.MISS}:
        kind = OutcomeKind.CANCELLED
    if kind is OutcomeKind.RETRY:
        parameters = {
            "seq": seq, "eta": eta, "error": outcome.error, "traceback": outcome.traceback,
        }  # fmt: skip
        work.execute(_sql.SET_RETRY, parameters)
    elif kind is OutcomeKind.RELEASE:
        work.execute(_sql.SET_RELEASED, {"seq": seq})
    elif kind is OutcomeKind.MISS:
        work.execute(_sql.SET_MISSED, {"seq": seq, "eta": eta})
    else:
        _set_final(work, seq, kind, outcome)
    work.execute(_sql.DELETE_LEASE, {"seq": seq})
    work.changed.add("results" if kind in _FINAL else "tasks")
    return True


_FINAL: Final = {
    OutcomeKind.SUCCESS: "success",
    OutcomeKind.FAILURE: "failed",
    OutcomeKind.CANCELLED: "cancelled",
}


def _set_final(work: Work, seq: int, kind: OutcomeKind, outcome: Outcome) -> None:
    parameters = {
        "seq": seq,
        "now": work.now,
        "status": _FINAL[kind],
        "value": (outcome.value or b"") if kind is OutcomeKind.SUCCESS else None,
        "error": outcome.error if kind is OutcomeKind.FAILURE else None,
        "traceback": outcome.traceback if kind is OutcomeKind.FAILURE else None,
    }
    work.execute(_sql.SET_FINAL, parameters)


def cancel(work: Work, task_ids: list[TaskId[Any]]) -> list[bool]:
    """Cancel tasks that wait; ask those that run to end."""
    return [_cancel(work, task_id) for task_id in task_ids]


def _cancel(work: Work, task_id: TaskId[Any]) -> bool:
    row = work.execute(_sql.STATUS, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFoundError(f"no task has the id {task_id}")
    seq, status = row
    if status == "pending":
        end = Outcome(task_id=task_id, epoch=0, kind=OutcomeKind.CANCELLED)
        _set_final(work, seq, OutcomeKind.CANCELLED, end)
        work.changed.add("results")
        return True
    if status == "in_progress":
        work.execute(_sql.REQUEST_CANCEL, (seq,))
        work.execute(RELEASE_KEY, {"seq": seq})
        work.changed.add("cancels")
        return True
    return False
