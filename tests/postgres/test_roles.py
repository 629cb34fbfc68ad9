"""The roles of the page on PostgreSQL can do what it says, and no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sitq import (
    Admin,
    BackendConnectionError,
    TaskFilter,
    TaskQueue,
    Worker,
    task,
)
from sitq.backends.postgres import PostgresBackend
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "postgresql.md"
DENIED = "permission denied"


async def user_of(role: str, schema: str) -> str:
    """Make a role with the grants of the page, and return the URL that it connects with."""
    block = PAGE.read_text().partition(f"-- {role}\n")[2].partition("\n\n")[0].partition("```")[0]
    assert "GRANT" in block
    name = f"{schema}_{role}"
    script = block.replace(f"sitq_{role}", "THE_ROLE").replace("sitq", schema)
    for statement in (f"CREATE ROLE {name} LOGIN", *script.replace("THE_ROLE", name).split(";")):
        if statement.strip():
            await anyio.to_thread.run_sync(query, statement)
    user = dsn().replace("postgres@", f"{name}@")
    if user == dsn():
        pytest.skip("the server given does not let others in")
    return user


async def new_store() -> str:
    """Make a store; return its schema."""
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    await backend.close()
    return schema


@pytest.mark.parametrize("role", ["producer", "worker"])
async def test_the_documented_roles_have_the_rights_that_they_need(role: str) -> None:
    schema = await new_store()
    user = await user_of(role, schema)
    backend = PostgresBackend(user, schema=schema, migrate=False)
    await backend.open()
    ids = await backend.enqueue([new_task(), new_task(unique_key="k")])
    assert len(await backend.get_results(ids)) == 2
    if role == "worker":
        taken = (await backend.reserve("w", ["default"], 5, 0.0)).tasks
        assert len(taken) == 2
        assert (await backend.sweep(3)).reclaimed == 2
        assert await backend.prune(0) == 0
    else:
        assert await backend.cancel(ids[0])
        with pytest.raises(BackendConnectionError, match=DENIED):
            await backend.prune(0)
    async with backend.listen("tasks") as listener:
        await backend.enqueue([new_task()])
        with anyio.fail_after(10):
            await listener.wait()
    await backend.close()
    with pytest.raises(BackendConnectionError, match=DENIED):
        await PostgresBackend(user, schema=new_schema()).open()


@task
def fail() -> None:
    raise ValueError("no luck")


async def fill(schema: str) -> None:
    """Enqueue a task that fails, and one that waits; run a worker of all that is due."""
    backend = PostgresBackend(dsn(), schema=schema)
    async with TaskQueue(backend) as queue:
        await queue.enqueue(fail)
        await queue.options(delay=3600).enqueue(fail)
        await Worker(backend).drain()


async def look_at(admin: Admin) -> None:
    """Use each method that changes nothing."""
    (failed,) = (await admin.list_tasks(TaskFilter(status="failed"))).items
    assert len((await admin.list_tasks(TaskFilter(status="pending"))).items) == 1
    assert (await admin.count_tasks()).value == 2
    assert (await admin.overview()).totals["failed"].value == 1
    assert len(await admin.get_attempts(failed.task_id)) == 1
    await admin.list_workers()
    await admin.list_pauses()
    for change in (admin.cancel_tasks, admin.delete_tasks, admin.retry_tasks):
        assert (await change(TaskFilter(), dry_run=True)).matched == 2


async def test_an_operator_can_use_every_method_of_an_admin() -> None:
    schema = await new_store()
    await fill(schema)
    backend = PostgresBackend(await user_of("operator", schema), schema=schema, migrate=False)
    async with Admin(backend) as admin, Worker(PostgresBackend(dsn(), schema=schema), queues=["x"]):
        await look_at(admin)
        (waiting,) = (await admin.list_tasks(TaskFilter(status="pending"))).items
        one = TaskFilter(ids=(waiting.task_id,))
        assert (await admin.postpone_tasks(one, datetime.now(UTC) + timedelta(hours=2))).done == 1
        assert (await admin.set_priority(one, 5)).done == 1
        assert await admin.run_now(waiting.task_id)
        assert (await admin.retry_tasks(TaskFilter(status="failed"))).done == 1
        assert (await admin.cancel_tasks(one)).done == 1
        for _ in range(2):
            await admin.pause_queue("default", reason="no disk")
        assert await admin.resume_queue("default")
        with anyio.fail_after(30):
            while not (workers := await admin.list_workers()):  # noqa: ASYNC110 - of the store
                await anyio.sleep(0.01)
        assert await admin.quiet_worker(workers[0].id)
        assert (await admin.delete_tasks(TaskFilter())).done == 3
        assert (await admin.count_tasks()).value == 0


async def test_a_viewer_sees_all_and_changes_nothing() -> None:
    schema = await new_store()
    await fill(schema)
    backend = PostgresBackend(await user_of("viewer", schema), schema=schema, migrate=False)
    async with Admin(backend) as admin:
        await look_at(admin)
        for change in (admin.cancel_tasks, admin.delete_tasks, admin.retry_tasks):
            with pytest.raises(BackendConnectionError, match=DENIED):
                await change(TaskFilter())
        with pytest.raises(BackendConnectionError, match=DENIED):
            await admin.pause_queue("default")
        with pytest.raises(BackendConnectionError, match=DENIED):
            await admin.stop_worker("x")
        assert (await admin.count_tasks()).value == 2
