"""Tasks and outcomes for tests of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from sitq.backends.postgres import PostgresBackend
from sitq.ids import new_task_id
from sitq.models import Lease, Outcome, OutcomeKind, Task
from tests.postgres.servers import new_schema

if TYPE_CHECKING:
    from sitq.backends.postgres._connection import PgConnection

__all__ = ["at_rest", "make_outcome", "new_task", "opened"]


def new_task(**options: Any) -> Task:
    """A task with a fresh id."""
    return Task(**{"id": new_task_id(), "function": "tests:nothing", "payload": b"\x90"} | options)


def make_outcome(kind: OutcomeKind, lease: Lease) -> Outcome:
    """An outcome of any kind, with all that its kind carries."""
    match kind:
        case OutcomeKind.SUCCESS:
            return Outcome.success(lease, b"value")
        case OutcomeKind.FAILURE:
            return Outcome.failure(lease, "ValueError: no", "the frames")
        case OutcomeKind.RETRY:
            return Outcome.retry(lease, 0.0, "ValueError: again", "the frames")
        case OutcomeKind.UNKNOWN_FUNCTION:
            return Outcome.unknown_function(lease, 0.0)
        case OutcomeKind.RELEASE:
            return Outcome.release(lease)
        case OutcomeKind.CANCELLED:
            return Outcome.cancelled(lease)


async def opened(where: str, schema: str = "", **options: Any) -> PostgresBackend:
    """A backend with one connection, over which each statement has been prepared."""
    backend = PostgresBackend(where, schema=schema or new_schema(), pool_size=1, **options)
    await backend.open()
    # Each statement is prepared once, so that a question is one message.
    await backend.enqueue([new_task(queue="warm", unique_key="warm")])
    (task_id,) = await backend.enqueue([new_task(queue="warm")])
    taken = (await backend.reserve("w", ["warm"], 9, 30.0)).tasks
    await backend.finish([Outcome.success(task.lease, b"") for task in taken[:1]])
    await backend.finish([Outcome.failure(task.lease, "no") for task in taken[1:]])
    await backend.get_tasks([task_id])
    await at_rest(backend)
    return backend


async def at_rest(backend: PostgresBackend) -> PgConnection:
    """Its one connection, once no notification is under way that would be lost first."""
    session = backend._open_counter.use()
    with anyio.fail_after(20):
        while session.throttle._deferred or session.pool._room.locked():  # noqa: ASYNC110
            await anyio.sleep(0.002)
    return session.pool._idle[0]
