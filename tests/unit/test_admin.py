"""`Admin` and `SyncAdmin`: what they check, and what they make of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from sitq import (
    Admin,
    MsgpackSerializer,
    SerializationError,
    SQLiteBackend,
    SyncAdmin,
    SyncTaskQueue,
    TaskFilter,
    TaskId,
    TaskNotFoundError,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    call,
    task,
)
from sitq.administration import WorkerReport, WorkerState
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from sitq.testing import FakeClock

pytestmark = pytest.mark.anyio

KEYS = [b"k" * 32]
HOUR = timedelta(hours=1)
UNKNOWN = TaskId[Any]("01900000-0000-7000-8000-000000000000")


@task
async def add(left: int, right: int) -> int:
    return left + right


@task
async def fail() -> None:
    raise ValueError("no luck")


class Plain:
    """A store with the methods of `Backend` alone."""

    def __init__(self) -> None:
        self._store = MemoryBackend()
        for name in ("open", "close", "enqueue", "reserve", "finish", "clock"):
            setattr(self, name, getattr(self._store, name))


def new_report(worker_id: str, now: datetime) -> WorkerReport:
    return WorkerReport(
        id=worker_id,
        host="h",
        pid=1,
        version="1",
        queues=("*",),
        functions=(),
        slots=1,
        running=0,
        state=WorkerState.ACTIVE,
        lease=30.0,
        started_at=now,
    )


@pytest.fixture(params=["memory", "sqlite"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    store: Backend = (
        MemoryBackend() if request.param == "memory" else SQLiteBackend(tmp_path / "q.db")
    )
    await store.open()
    yield store
    await store.close()


def test_a_store_without_administration_is_refused() -> None:
    with pytest.raises(UsageError, match="AdminBackend"):
        Admin(cast("Backend", Plain()))
    with pytest.raises(ValidationError, match="backend"):
        Admin(cast("Backend", SQLiteBackend))


async def test_what_is_wrong_is_named_before_the_store_is_asked() -> None:
    admin = Admin(MemoryBackend())
    where: Any = {"status": "failed"}
    with pytest.raises(ValidationError, match=r"where: give a TaskFilter \(got dict\)"):
        await admin.list_tasks(where)
    for limit in (0, -1, 1001, 2.0, True, "5"):
        with pytest.raises(ValidationError, match="limit: give an int from 1 to 1,000"):
            await admin.list_tasks(limit=cast("int", limit))
    with pytest.raises(ValidationError, match="cursor"):
        await admin.list_tasks(cursor=cast("str", 5))
    with pytest.raises(ValidationError, match="queue"):
        await admin.pause_queue("no queue")
    with pytest.raises(ValidationError, match="until: a naive datetime"):
        await admin.pause_queue("q", until=datetime(2030, 1, 1))
    with pytest.raises(ValidationError, match="reason: give at most 1,000 characters"):
        await admin.pause_queue("q", reason="x" * 1001)
    for text in ("\ud800", "\0"):
        with pytest.raises(ValidationError, match="reason: give at most 1,000 characters"):
            await admin.pause_queue("q", reason=text)
        with pytest.raises(ValidationError, match="by: give at most 256 characters"):
            await admin.pause_queue("q", by=text)
        with pytest.raises(ValidationError, match="worker_id: give at most 128 characters"):
            await admin.stop_worker(text)
    for dry_run in ("no", 0, None):
        with pytest.raises(ValidationError, match=r"dry_run: give a bool \(got"):
            await admin.delete_tasks(TaskFilter(), dry_run=cast("bool", dry_run))
        with pytest.raises(ValidationError, match="dry_run"):
            await admin.retry_tasks(TaskFilter(), dry_run=cast("bool", dry_run))
    with pytest.raises(ValidationError, match="eta"):
        await admin.postpone_tasks(TaskFilter(), cast("datetime", 5))
    with pytest.raises(ValidationError, match="priority"):
        await admin.set_priority(TaskFilter(), 101)
    with pytest.raises(TaskNotFoundError, match="not the id of any task"):
        await admin.get_attempts("x")
    await admin.close()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"status": "done"}, "status"),
        ({"queue": "no queue"}, "queue"),
        ({"ids": "x"}, "ids"),
        ({"ids": ["x"]}, "ids"),
        ({"priority": 1.0}, "priority"),
        ({"eta_after": datetime(2030, 1, 1)}, "eta_after"),
        ({"eta_after": datetime.min.replace(tzinfo=timezone(14 * HOUR))}, "eta_after"),
        ({"worker": "\0"}, "worker"),
        ({"error": "ValueError: text"}, "error"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_filter_names_the_field_that_is_wrong(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=rf"TaskFilter: {text}"):
        TaskFilter(**fields)


async def test_a_paused_queue_waits_for_its_end(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        await admin.pause_queue("default", reason="SMTP is down", by="ann")
        task_id = await queue.enqueue(add, 1, 2)
        async with Worker(backend, poll_interval=60):
            (pause,) = await admin.list_pauses()
            assert (pause.queue, pause.reason, pause.by) == ("default", "SMTP is down", "ann")
            assert await queue.get_result(task_id, timeout=0.05) is None
            assert await admin.resume_queue("default") is True
            assert await queue.result(task_id, timeout=20) == 3
        assert await admin.resume_queue("default") is False


async def test_a_pause_whose_end_is_over_pauses_nothing_and_is_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async with Admin(backend) as admin:
        await admin.pause_queue("default", until=datetime.now(UTC) - HOUR)
        assert await admin.list_pauses() == []
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("queue default is not paused: its pause until ")


async def test_more_tasks_than_a_batch_are_cancelled(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        await queue.enqueue_many([call(add, 1, 2)] * 2300)
        await queue.options(queue="other").enqueue(add, 1, 2)
        where = TaskFilter(status="pending", queue="default")
        assert (await admin.count_tasks(where)).value == 2300
        dry = await admin.cancel_tasks(where, dry_run=True)
        assert (dry.matched, dry.done, dry.skipped, dry.cursor) == (2300, 2300, (), None)
        part = await admin.cancel_tasks(where, limit=1200)
        assert (part.matched, part.done) == (1200, 1200)
        rest = await admin.cancel_tasks(where, cursor=part.cursor)
        assert (rest.matched, rest.done, rest.cursor) == (1100, 1100, None)
        assert (await admin.count_tasks(TaskFilter(status="pending"))).value == 1


async def test_failed_tasks_are_retried_once(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        failed = [await queue.enqueue(fail) for _ in range(3)]
        await Worker(backend).drain()
        where = TaskFilter(status="failed")
        assert (await admin.retry_tasks(where, dry_run=True)).done == 3
        assert (await admin.retry_tasks(where)).done == 3
        again = await admin.retry_tasks(where)
        assert (again.matched, again.done, len(again.skipped)) == (3, 0, 3)
        repeats = [(await queue.get_task(task_id)).retried_as for task_id in failed]
        infos = [await queue.get_task(str(repeat)) for repeat in repeats]
        assert [info.retry_of for info in infos] == failed
        await Worker(backend).drain()
        assert (await admin.retry_tasks(where)).done == 3  # those that have failed since
        (attempt,) = await admin.get_attempts(failed[0])
        assert (attempt.number, attempt.error) == (1, "ValueError: no luck")
        assert "no luck" in (attempt.traceback or "")


async def test_what_has_succeeded_is_retried_only_by_its_status_or_id(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        done, failed = await queue.enqueue(add, 1, 2), await queue.enqueue(fail)
        waiting = await queue.options(delay=3600).enqueue(add, 1, 2)
        await Worker(backend).drain()
        result = await admin.retry_tasks(TaskFilter(queue="default"))
        assert (result.matched, result.done) == (3, 1)
        assert dict(result.skipped) == {
            waiting: "it is not final (pending)",
            done: "it has succeeded: to run it again, give its status or its id",
        }
        repeat = (await queue.get_task(failed)).retried_as
        ((_, reason),) = (await admin.retry_tasks(TaskFilter(ids=(failed,)))).skipped
        assert reason == f"it was retried before, as {repeat}"
        assert (await admin.retry_tasks(TaskFilter(status="success"), dry_run=True)).done == 1
        assert (await admin.retry_tasks(TaskFilter(ids=(done,)))).done == 1


async def test_a_single_retry_counts_for_a_bulk_one(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        failed = await queue.enqueue(fail)
        await Worker(backend).drain()
        first, second = [await queue.retry(failed) for _ in range(2)]
        assert first != second
        assert (await queue.get_task(failed)).retried_as == second
        assert (await admin.retry_tasks(TaskFilter(ids=(failed,)))).done == 0


async def test_a_task_is_run_now(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        task_id = await queue.options(delay=3600).enqueue(add, 1, 2)
        assert await admin.run_now(task_id) is True
        await Worker(backend).drain()
        assert await queue.result(task_id, timeout=0) == 3
        assert await admin.run_now(task_id) is False
        with pytest.raises(TaskNotFoundError):
            await admin.run_now(UNKNOWN)


async def test_what_an_admin_changes_is_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sitq.admin")
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        task_id = await queue.options(delay=3600).enqueue(add, 1, 2)
        await admin.run_now(task_id)
        await admin.pause_queue("default", reason="SMTP is down", by="ann")
        await admin.resume_queue("default")
        await admin.cancel_tasks(TaskFilter())
        await admin.stop_worker("unknown")
        await admin.run_now(task_id)  # nothing has changed
    assert [record.getMessage() for record in caplog.records] == [
        f"task {task_id} was made due at once",
        "queue default is paused (by 'ann', reason 'SMTP is down')",
        "queue default is resumed",
        "cancel: 1 of the 1 tasks that match",
    ]


async def test_without_the_keys_nothing_new_can_be_made_to_run(backend: Backend) -> None:
    serializer = MsgpackSerializer(keys=KEYS)
    async with TaskQueue(backend, serializer) as queue, Admin(backend) as admin:
        later = await queue.options(delay=3600).enqueue(add, 1, 2)
        failed = await queue.enqueue(fail)
        await Worker(backend, serializer).drain()
        with pytest.raises(SerializationError, match="no keys"):
            await admin.run_now(later)
        result = await admin.retry_tasks(TaskFilter(ids=(failed,)))
        ((skipped, reason),) = result.skipped
        assert skipped == failed
        assert "keys" in reason
        moved = await admin.postpone_tasks(TaskFilter(ids=(later,)), datetime.now(UTC) + 2 * HOUR)
        assert moved.done == 1
        assert (await admin.set_priority(TaskFilter(ids=(later,)), 5)).done == 1
        keeper = Admin(backend, serializer)
        assert await keeper.run_now(later)
        assert (await keeper.retry_tasks(TaskFilter(ids=(failed,)))).done == 1
        await keeper.close()
        await Worker(backend, serializer).drain()
        assert await queue.result(later, timeout=0) == 3


async def test_tasks_are_deleted_but_for_those_that_run(backend: Backend) -> None:
    async with TaskQueue(backend) as queue, Admin(backend) as admin:
        ids = await queue.enqueue_many([call(add, 1, 2)] * 3)
        (running,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
        result = await admin.delete_tasks(TaskFilter())
        assert (result.matched, result.done) == (3, 2)
        assert [task_id for task_id, _ in result.skipped] == [running.id]
        with pytest.raises(TaskNotFoundError):
            await queue.get_task(ids[2] if running.id != ids[2] else ids[1])


async def test_a_bulk_operation_ends_with_its_admin(backend: Backend) -> None:
    """Also while others use the same store."""
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many([call(add, 1, 2)] * 2300)
        admin = Admin(backend)
        ended: list[BaseException] = []

        async def delete() -> None:
            try:
                await admin.delete_tasks(TaskFilter())
            except UsageError as error:
                ended.append(error)

        async with Admin(backend) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(delete)
            while (await other.count_tasks()).value == 2300:
                await anyio.lowlevel.checkpoint()
            await admin.close()
        assert len(ended) == 1
        async with Admin(backend) as other:
            assert (await other.count_tasks()).value in {300, 1300}


async def test_an_event_loop_is_not_blocked() -> None:
    admin = SyncAdmin(MemoryBackend())
    with pytest.raises(UsageError, match=r"SyncAdmin would block .*: use Admin and await"):
        admin.overview()


async def test_a_worker_of_a_time_to_come_is_lost(tmp_path: Path) -> None:
    """A clock that was set back: a worker that lives reports by the new time soon."""
    clock = FakeClock()
    for backend in (MemoryBackend(clock=clock), SQLiteBackend(tmp_path / "q.db", clock=clock)):
        async with Admin(backend) as admin:
            with closing(backend.lease_keeper()) as keeper:
                for name, jump in (("dead", -3600), ("alive", 0)):
                    keeper.report(new_report(name, clock.now()))
                    clock.jump(jump)
            states = {worker.id: worker.state for worker in await admin.list_workers()}
            assert states == {"dead": WorkerState.LOST, "alive": WorkerState.ACTIVE}


async def test_an_overview_of_an_empty_store_is_empty(backend: Backend) -> None:
    async with Admin(backend) as admin:
        view = await admin.overview()
        assert (view.queues, view.workers, view.unserved) == ((), (), ())
        assert {count.value for count in view.totals.values()} == {0}


def test_sync_admin_has_the_same_methods(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with SyncTaskQueue(SQLiteBackend(path)) as queue, SyncAdmin(SQLiteBackend(path)) as admin:
        failed = queue.enqueue(fail)
        queue.drain()
        assert [info.task_id for info in admin.list_tasks().items] == [failed]
        assert admin.count_tasks(TaskFilter(status="failed")).value == 1
        assert admin.retry_tasks(TaskFilter(status="failed")).done == 1
        waiting = queue.options(delay=3600).enqueue(add, 1, 2)
        assert admin.postpone_tasks(TaskFilter(ids=(waiting,)), datetime.now(UTC) + 2 * HOUR).done
        assert admin.set_priority(TaskFilter(ids=(waiting,)), 3).done == 1
        assert admin.run_now(waiting)
        admin.pause_queue("default")
        assert queue.drain() == 0
        assert [pause.queue for pause in admin.list_pauses()] == ["default"]
        assert admin.resume_queue("default")
        assert queue.drain() == 2
        assert len(admin.get_attempts(failed)) == 1
        assert admin.cancel_tasks(TaskFilter()).done == 0
        assert admin.overview().totals["failed"].value == 2
        assert admin.delete_tasks(TaskFilter(status="failed")).done == 2
        assert admin.list_workers() == []
        assert not admin.quiet_worker("x")
        assert not admin.resume_worker("x")
        assert not admin.stop_worker("x")
        assert queue.get_task(waiting).status is TaskStatus.SUCCESS
    public = {name for name in vars(Admin) if not name.startswith("_")}
    assert public == {name for name in vars(SyncAdmin) if not name.startswith("_")}
