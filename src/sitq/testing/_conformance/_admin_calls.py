"""Checks of every operation of administration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from sitq.administration import (
    AdminBackend,
    BulkChange,
    QueuePause,
    TaskChange,
    TaskFilter,
    WorkerState,
)
from sitq.backends._operations import ADMIN_VERBS
from sitq.errors import UsageError
from sitq.ids import new_task_id
from sitq.models import Lease
from sitq.testing._conformance._admin_store import AdminSuite
from sitq.testing._conformance._opening import check_cancelled
from sitq.testing._conformance._suite import new_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.testing._conformance._admin_store import AdminStore

__all__ = ["ADMIN_CALLS", "AdminCallChecks"]


async def _pause(backend: AdminBackend, _: Lease) -> None:
    await backend.pause_queue(QueuePause(queue="paused", at=backend.clock.now()))


async def _cancel_all(backend: AdminBackend, _: Lease) -> object:
    where = TaskFilter(queue="more")
    return await backend.change_tasks(TaskChange(BulkChange.CANCEL), where, 10, None, dry_run=False)


async def _retry(backend: AdminBackend, lease: Lease) -> object:
    repeat = new_task(queue="more", retry_of=lease.task_id)
    return await backend.retry_tasks([repeat], again=True)


# A call of each verb, for an attempt that has a lease.
ADMIN_CALLS: Final[dict[str, Callable[[AdminBackend, Lease], Awaitable[object]]]] = {
    "list_tasks": lambda backend, _: backend.list_tasks(TaskFilter(), 10, None),
    "count_tasks": lambda backend, _: backend.count_tasks(TaskFilter(), 10, 1.0),
    "overview": lambda backend, _: backend.overview(),
    "pause_queue": _pause,
    "resume_queue": lambda backend, _: backend.resume_queue("paused"),
    "list_pauses": lambda backend, _: backend.list_pauses(),
    "change_tasks": _cancel_all,
    "load_tasks": lambda backend, lease: backend.load_tasks([lease.task_id]),
    "retry_tasks": _retry,
    "replace_task": lambda backend, _: backend.replace_task(new_task()),
    "get_attempts": lambda backend, lease: backend.get_attempts(lease.task_id),
    "list_workers": lambda backend, _: backend.list_workers(),
    "order_worker": lambda backend, _: backend.order_worker("worker", WorkerState.QUIET),
}


class AdminCallChecks(AdminSuite):
    """What holds for every operation of administration."""

    async def test_administration_of_what_is_not_open_is_refused(self, closed: AdminStore) -> None:
        """Every operation raises `UsageError`."""
        lease = Lease(new_task_id(), 1)
        for verb in ADMIN_VERBS:
            with pytest.raises(UsageError):
                await ADMIN_CALLS[verb.name](closed.admin, lease)

    @pytest.mark.parametrize("operation", [verb.name for verb in ADMIN_VERBS if verb.writes])
    async def test_a_cancelled_admin_leaves_no_lock(
        self, store: AdminStore, operation: str
    ) -> None:
        """Wherever an operation is cancelled, the next ones work."""
        await check_cancelled(ADMIN_CALLS[operation], store, [store])
