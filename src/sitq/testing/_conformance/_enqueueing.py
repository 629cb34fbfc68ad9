"""Checks of how tasks are stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sitq.errors import BackendError, TaskNotFoundError
from sitq.ids import new_task_id
from sitq.models import RetryPolicy
from sitq.states import TaskStatus
from sitq.testing._conformance._suite import (
    LEASE,
    PATIENCE,
    QUEUES,
    Store,
    Suite,
    at_once,
    new_task,
)

if TYPE_CHECKING:
    from sitq.models import Task

__all__ = ["EnqueueChecks"]

# An offset that is not a whole number of hours, and the finest moment that is stored.
_FAR = datetime(2031, 5, 6, 7, 8, 9, 123457, tzinfo=timezone(timedelta(hours=5, minutes=45)))


def full_task(**options: Any) -> Task:
    """Make a task with every option set."""
    return new_task(
        **{
            "function": "pkg.mod:Class.größe",
            "payload": bytes(range(256)) * 40,
            "queue": "mail/out:1.x-y_z",
            "priority": -100,
            "eta": _FAR,
            "timeout": 0.25,
            "retry": RetryPolicy(max_attempts=7, delay=0.5, retry_on=("builtins.OSError",)),
            "unique_key": 'it\'s; --"a" key ✓',
            "unique_until": "start",
            "expires_at": _FAR + timedelta(days=1),
            "result_ttl": 1.5,
            "headers": {"trace": "ab'c", "": "ü"},
            "retry_of": new_task_id(),
        }
        | options
    )


def assert_near(asked: datetime | None, stored: datetime | None) -> None:
    """Check that a moment was stored, to the microsecond before or after."""
    if asked is not None:
        assert stored is not None
        assert abs(stored - asked) <= timedelta(microseconds=1)


class EnqueueChecks(Suite):
    """`Backend.enqueue`, `Backend.load_task`."""

    async def test_a_new_task_is_pending_and_has_counts_of_zero(self, store: Store) -> None:
        """A task without options is pending, due at once, and has no history."""
        now = await store.now()
        task_id = await store.add()
        info = await store.info(task_id)
        assert (info.task_id, info.status) == (task_id, TaskStatus.PENDING)
        assert (info.attempts, info.crashes, info.priority) == (0, 0, 0)
        assert store.same(info.eta, now)
        assert store.same(info.enqueued_at, now)
        assert info.started_at is info.finished_at is info.expires_at is None
        assert info.progress is None
        assert info.error is info.unique_key is info.retry_of is None
        assert not info.cancel_requested
        task = await store.take_one()
        assert (task.epoch, task.attempt, task.unknown_function_count) == (1, 1, 0)

    async def test_every_field_of_a_task_is_kept(self, store: Store) -> None:
        """Every field comes back from the store, the eta in UTC to the microsecond."""
        task = full_task()
        assert await store.enqueue([task]) == [task.id]
        assert await store.load_task(task.id) == task
        info = await store.info(task.id)
        assert (info.queue, info.function) == (task.queue, task.function)
        assert (info.priority, info.unique_key) == (task.priority, task.unique_key)
        assert (info.eta, info.expires_at) == (task.eta, task.expires_at)
        assert info.eta.tzinfo is UTC
        assert info.retry_of == task.retry_of

    async def test_every_field_of_a_task_reaches_its_worker(self, store: Store) -> None:
        """A reservation carries what the task was enqueued with."""
        task = full_task(eta=None, expires_at=None)
        await store.enqueue([task])
        (reserved,) = await store.take(queues=[task.queue])
        assert (reserved.id, reserved.function) == (task.id, task.function)
        assert (reserved.payload, reserved.queue) == (task.payload, task.queue)
        assert (reserved.timeout, reserved.retry) == (task.timeout, task.retry)
        assert reserved.headers == task.headers
        info = await store.info(task.id)
        assert (reserved.eta, reserved.enqueued_at) == (info.eta, info.enqueued_at)

    @pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0a\0", b"x" * 1_000_000])
    async def test_a_payload_is_any_bytes(self, store: Store, payload: bytes) -> None:
        """Empty, zero and long payloads come back byte by byte, also between others."""
        tasks = [new_task(payload=b"before"), new_task(payload=payload), new_task(payload=b"after")]
        await store.enqueue(tasks)
        assert [task.payload for task in await store.take()] == [b"before", payload, b"after"]

    async def test_the_stored_task_has_its_eta_filled_in(self, store: Store) -> None:
        """``eta=None`` is stored as the moment of the call."""
        task = new_task()
        now = await store.now()
        await store.enqueue([task])
        stored = await store.load_task(task.id)
        assert store.same(stored.eta, now)
        assert stored.model_copy(update={"eta": None}) == task

    async def test_the_ends_of_time_are_moments_as_well(self, store: Store) -> None:
        """The first and the last of all moments are kept, to a microsecond."""
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        tasks = [
            new_task(eta=first),
            new_task(),
            new_task(expires_at=last),
            new_task(eta=last),
            new_task(expires_at=first),
        ]
        await store.enqueue(tasks)
        for task in tasks:
            stored = await store.load_task(task.id)
            info = await store.info(task.id)
            assert (info.eta, info.expires_at) == (stored.eta, stored.expires_at)
            assert_near(task.eta, stored.eta)
            assert_near(task.expires_at, stored.expires_at)
        reservation = await store.reserve("w", QUEUES, 9, LEASE)
        assert [task.id for task in reservation.tasks] == [task.id for task in tasks[:3]]
        assert_near(first, reservation.tasks[0].eta)
        assert reservation.wait is not None
        left = last - await store.now() - timedelta(seconds=reservation.wait)
        assert abs(left) < timedelta(seconds=PATIENCE)
        assert (await store.sweep(3)).expired == 1

    async def test_an_unknown_id_has_no_stored_task(self, store: Store) -> None:
        """`load_task` of an unknown id raises `TaskNotFoundError`."""
        with pytest.raises(TaskNotFoundError):
            await store.load_task(new_task_id())

    async def test_ids_come_back_in_order(self, store: Store) -> None:
        """The ids come in the order of the tasks, whatever their priority."""
        tasks = [new_task(priority=i % 3) for i in range(300)]
        tasks.reverse()
        assert await store.enqueue(tasks) == [task.id for task in tasks]
        assert await store.enqueue([]) == []

    async def test_a_known_id_stores_nothing(self, store: Store) -> None:
        """An id that exists is an error, and no task of its batch is stored."""
        old = await store.add(payload=b"old")
        others = [new_task(), new_task(unique_key="k")]
        for batch in ([others[0], new_task(id=old)], [others[1], new_task(id=old)]):
            with pytest.raises(BackendError):
                await store.enqueue(batch)
        assert await store.get_tasks([task.id for task in others]) == [None, None]
        assert (await store.load_task(old)).payload == b"old"

    async def test_an_id_twice_in_a_batch_stores_nothing(self, store: Store) -> None:
        """An id must be new within its own batch too."""
        task = new_task()
        with pytest.raises(BackendError):
            await store.enqueue([task, task])
        assert await store.get_tasks([task.id]) == [None]

    async def test_a_bad_batch_does_not_harm_its_neighbours(self, store: Store) -> None:
        """Of calls made at the same time, only the wrong one raises."""
        old = await store.add()

        async def fails(task: Task) -> bool:
            try:
                await store.enqueue([task])
            except BackendError:
                return True
            return False

        good = [new_task() for _ in range(20)]
        calls = [*good[:10], new_task(id=old), *good[10:]]
        assert sum(await at_once([partial(fails, task) for task in calls])) == 1
        assert None not in await store.get_tasks([task.id for task in good])
