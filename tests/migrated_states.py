"""What both stores do with tasks in every state that a store of an older format holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio.to_thread

from sitq.administration import (
    BulkChange,
    QueuePause,
    TaskChange,
    TaskFilter,
    WorkerReport,
    WorkerState,
)
from sitq.ids import TaskId, new_task_id
from sitq.models import Lease, Outcome, Task

if TYPE_CHECKING:
    from sitq.administration import AdminBackend, StatusFilter

__all__ = ["OLD_TASKS", "OldTask", "check_states"]


class OldTask(NamedTuple):
    """A task of an older format; ``scheduled``: its eta is an hour from now."""

    name: StatusFilter
    status: str
    epoch: int = 0
    is_final: bool = False
    scheduled: bool = False
    value: bytes | None = None
    error: str | None = None

    @property
    def id(self) -> TaskId[Any]:
        """Its id, by the name."""
        return _IDS[self.name]


OLD_TASKS = [
    OldTask("due", "pending"),
    OldTask("scheduled", "pending", scheduled=True),
    OldTask("retrying", "pending", epoch=1, scheduled=True, error="ValueError: again"),
    OldTask("in_progress", "in_progress", epoch=1),
    OldTask("success", "success", epoch=1, is_final=True, value=b"\x01"),
    OldTask("failed", "failed", epoch=1, is_final=True, error="ValueError: no"),
    OldTask("cancelled", "cancelled", is_final=True),
    OldTask("expired", "expired", is_final=True),
]
_IDS: dict[str, TaskId[Any]] = {old.name: new_task_id() for old in OLD_TASKS}
_CHANGED = {"scheduled": {"scheduled", "retrying"}}


async def check_states(backend: AdminBackend) -> None:
    """Open a store with `OLD_TASKS`, and administer it."""
    await backend.open()
    await _check_kept(backend)
    await _check_retries(backend)
    await _check_pauses(backend)
    await _check_workers(backend)
    await _check_deletes(backend)
    await backend.close()


async def _listed(backend: AdminBackend, status: StatusFilter | None) -> set[str]:
    page = await backend.list_tasks(TaskFilter(status=status), 100, None)
    count = await backend.count_tasks(TaskFilter(status=status), 100, 60.0)
    assert count.value == len(page.items)
    return {info.task_id for info in page.items}


async def _check_kept(backend: AdminBackend) -> None:
    infos = await backend.get_tasks([old.id for old in OLD_TASKS])
    results = await backend.get_results([old.id for old in OLD_TASKS])
    for old, info in zip(OLD_TASKS, infos, strict=True):
        assert info is not None
        found = (info.status, info.attempts, info.error, info.retried_as)
        assert found == (old.status, old.epoch, old.error, None)
        result = results[old.id]
        assert (result is not None) is old.is_final
        assert result is None or (result.value, result.error) == (old.value, old.error)
        names = _CHANGED.get(old.name, {old.name})
        assert await _listed(backend, old.name) == {_IDS[name] for name in names}
        assert await backend.get_attempts(old.id) == []
    assert await _listed(backend, None) == set(_IDS.values())


async def _check_retries(backend: AdminBackend) -> None:
    failed = _IDS["failed"]
    first, second = [
        Task(id=new_task_id(), function="m:f", payload=b"\x90", queue="again", retry_of=failed)
        for _ in range(2)
    ]
    assert await backend.retry_tasks([first], again=False) == [first.id]
    assert await backend.retry_tasks([second], again=False) == [None]
    (info,) = await backend.get_tasks([failed])
    assert info is not None
    assert info.retried_as == first.id


async def _check_pauses(backend: AdminBackend) -> None:
    await backend.pause_queue(QueuePause(queue="default", at=datetime.now(UTC)))
    assert (await backend.reserve("w", ["default"], 5, 30.0)).tasks == ()
    assert await backend.resume_queue("default")
    (taken,) = (await backend.reserve("w", ["default"], 5, 30.0)).tasks
    assert taken.id == _IDS["due"]
    eta = datetime.now(UTC) + timedelta(hours=2)
    change = TaskChange(BulkChange.POSTPONE, eta=eta)
    where = TaskFilter(queue="default")
    result = await backend.change_tasks(change, where, 100, None, dry_run=False)
    assert (result.matched, result.done) == (8, 2)


async def _check_workers(backend: AdminBackend) -> None:
    now = datetime.now(UTC)
    report = WorkerReport(
        id="old", host="alpha", pid=1, version="1", queues=("*",), functions=("m:f",), slots=1,
        running=1, state=WorkerState.ACTIVE, lease=30.0, started_at=now,
    )  # fmt: skip

    def tell() -> None:
        keeper = backend.lease_keeper()
        keeper.report(report)
        keeper.close()

    await anyio.to_thread.run_sync(tell)
    running = _IDS["in_progress"]
    (worker,) = (await backend.overview()).workers
    assert worker.tasks == (running,)
    lost = Outcome.failure(Lease(running, 1), "ValueError: at last")
    assert await backend.finish([lost]) == [True]
    (attempt,) = await backend.get_attempts(running)
    assert (attempt.number, attempt.worker, attempt.error) == (1, "old", "ValueError: at last")


async def _check_deletes(backend: AdminBackend) -> None:
    change = TaskChange(BulkChange.DELETE)
    where = TaskFilter(queue="default")
    result = await backend.change_tasks(change, where, 100, None, dry_run=False)
    assert (result.matched, result.done) == (8, 7)
    assert await _listed(backend, "in_progress") == {_IDS["due"]}
