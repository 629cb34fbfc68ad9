"""Answers that are lost on their way are found out: nothing is done twice, or told wrongly."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from functools import partial
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import psycopg
import pytest

from sitq import (
    BackendConnectionError,
    TaskStatus,
)
from sitq.backends.postgres import _connection, _operation_runner, _sql
from sitq.backends.postgres._operations import PgTransaction
from sitq.ids import new_task_id
from sitq.models import Lease, LeaseState, Outcome, OutcomeKind
from tests.postgres.proxies import Proxy
from tests.postgres.samples import at_rest, make_outcome, new_task, opened
from tests.postgres.servers import Server, new_schema, query

pytestmark = pytest.mark.anyio

Loses = Literal["question", "answer"]
# The key of an advisory lock.
_GATE = 7_204
both = pytest.mark.parametrize("loses", ["question", "answer"])


@both
async def test_an_enqueue_whose_answer_is_lost_is_stored_once(proxy: Proxy, loses: Loses) -> None:
    backend = await opened(proxy.dsn)
    tasks = [new_task() for _ in range(3)]
    proxy.lose(loses)
    assert await backend.enqueue(tasks) == [task.id for task in tasks]
    assert proxy.lost.is_set()
    taken = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert [task.id for task in taken] == [task.id for task in tasks]
    await backend.close()


@both
async def test_an_enqueue_with_keys_whose_answer_is_lost_returns_the_holders(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    holder = new_task(unique_key="a")
    await backend.enqueue([holder])
    tasks = [new_task(unique_key="a"), new_task(), new_task(unique_key="b")]
    proxy.lose(loses)
    assert await backend.enqueue(tasks) == [holder.id, tasks[1].id, tasks[2].id]
    assert proxy.lost.is_set()
    assert len((await backend.reserve("w", ["default"], 9, 30.0)).tasks) == 3
    await backend.close()


@both
async def test_a_reservation_whose_answer_is_lost_is_found_again(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    ids = await backend.enqueue([new_task() for _ in range(3)])
    proxy.lose(loses)
    taken = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert proxy.lost.is_set()
    assert [(task.id, task.epoch, task.attempt) for task in taken] == [(i, 1, 1) for i in ids]
    assert await backend.finish([Outcome.success(task.lease, b"") for task in taken]) == [True] * 3
    await backend.close()


@both
@pytest.mark.parametrize("kind", OutcomeKind)
async def test_an_outcome_whose_answer_is_lost_is_answered_as_it_was(
    proxy: Proxy, loses: Loses, kind: OutcomeKind
) -> None:
    backend = await opened(proxy.dsn)
    (task_id, lost_id) = await backend.enqueue([new_task(), new_task()])
    leases = [task.lease for task in (await backend.reserve("w", ["default"], 9, 30.0)).tasks]
    await backend.finish([Outcome.release(leases[1])])
    (again,) = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert again.id == lost_id
    outcomes = [make_outcome(kind, lease) for lease in (*leases, Lease(new_task_id(), 1))]
    proxy.lose(loses)
    answers = await backend.finish(outcomes)
    assert proxy.lost.is_set()
    assert answers[0] is True
    assert answers[2] is False
    if kind not in {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION}:
        assert answers[1] is False
    infos = [info for info in await backend.get_tasks([task_id, lost_id]) if info]
    assert infos[0].status is not TaskStatus.IN_PROGRESS
    assert infos[1].status is TaskStatus.IN_PROGRESS
    await backend.close()


@both
async def test_a_cancellation_whose_answer_is_lost_has_cancelled(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    await backend.cancel((await backend.enqueue([new_task()]))[0])
    (task_id,) = await backend.enqueue([new_task()])
    proxy.lose(loses)
    assert await backend.cancel(task_id) is True
    assert proxy.lost.is_set()
    (info,) = await backend.get_tasks([task_id])
    assert info is not None
    assert info.status is TaskStatus.CANCELLED
    await backend.close()


@both
async def test_a_read_and_a_heartbeat_outlive_a_lost_connection(proxy: Proxy, loses: Loses) -> None:
    backend = await opened(proxy.dsn)
    (task_id,) = await backend.enqueue([new_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    proxy.lose(loses)
    assert len(await backend.get_tasks([task_id])) == 1
    assert proxy.lost.is_set()

    def beat() -> None:
        keeper = backend.lease_keeper()
        assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
        proxy.lose(loses)
        assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
        assert proxy.lost.is_set()
        keeper.close()
        keeper.close()

    await anyio.to_thread.run_sync(beat)
    await backend.close()


async def test_an_enqueue_whose_commit_comes_after_the_search_is_stored_once(
    proxy: Proxy, server: Server
) -> None:
    """Behind a pooler the server's process is unknown, and cannot be ended before the search."""
    schema = new_schema()
    backend = await opened(proxy.dsn, schema, prepared_statements=False)
    task = new_task()
    with closing(psycopg.connect(server.dsn, autocommit=True)) as gate:
        gate.execute(f"""
            CREATE FUNCTION "{schema}".wait_at_commit() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock({_GATE}); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON "{schema}".tasks
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION "{schema}".wait_at_commit();
        """)
        gate.execute("SELECT pg_advisory_lock(%s)", (_GATE,))
        answers: list[str] = []

        async def ask() -> None:
            answers.extend(await backend.enqueue([task]))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            with anyio.fail_after(20):
                await _waits_for("advisory", server)
                proxy.cut()
                await _waits_for("transactionid", server)  # the second try meets the first
            await anyio.to_thread.run_sync(gate.execute, "SELECT pg_advisory_unlock(%s)", (_GATE,))
    assert answers == [task.id]
    (taken,) = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert taken.id == task.id
    await backend.close()


@pytest.mark.parametrize("change", ["success", "failure", "cancel"])
async def test_an_end_whose_commit_comes_after_the_search_is_answered_as_it_was(
    proxy: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Behind a pooler: the lost statement holds its locks until its commit arrives."""
    schema = new_schema()
    backend = await opened(proxy.dsn, schema, prepared_statements=False)
    (task_id,) = await backend.enqueue([new_task()])
    answers: list[bool] = []

    async def ask() -> None:
        if change == "cancel":
            answers.append(await backend.cancel(task_id))
            return
        (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
        outcome = Outcome.success(task.lease, b"v")
        if change == "failure":
            outcome = Outcome.failure(task.lease, "ValueError: no")
        answers.extend(await backend.finish([outcome]))

    searched = threading.Event()
    real = PgTransaction.rows

    async def rows(transaction: PgTransaction, sql: str, *parameters: Any) -> list[Any]:
        try:
            return await real(transaction, sql, *parameters)
        finally:
            if sql.startswith(_sql.STATES):
                searched.set()

    with closing(psycopg.connect(server.dsn, autocommit=True)) as gate:
        gate.execute(f"""
            CREATE FUNCTION "{schema}".wait_at_commit() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock({_GATE}); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait_at_commit AFTER UPDATE ON "{schema}".tasks
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (new.finished_at IS NOT NULL)
            EXECUTE FUNCTION "{schema}".wait_at_commit();
        """)
        gate.execute("SELECT pg_advisory_lock(%s)", (_GATE,))
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            with anyio.fail_after(20):
                await _waits_for("advisory", server)
                monkeypatch.setattr(PgTransaction, "rows", rows)
                proxy.cut()
                assert await anyio.to_thread.run_sync(searched.wait, 20)
            await anyio.to_thread.run_sync(gate.execute, "SELECT pg_advisory_unlock(%s)", (_GATE,))
    assert answers == [True]
    (info,) = await backend.get_tasks([task_id])
    assert info is not None
    assert info.status.is_final
    await backend.close()


async def _waits_for(event: str, server: Server) -> None:
    """Return once a statement waits for a lock of this kind."""
    found = f"SELECT 1 FROM pg_stat_activity WHERE wait_event = '{event}'"
    ask = partial(query, found, where=server.dsn)
    while not await anyio.to_thread.run_sync(ask):  # noqa: ASYNC110 - no event tells
        await anyio.sleep(0.005)


async def test_an_outcome_that_cannot_be_found_out_is_called_unknown(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_operation_runner, "_SEARCH_SECONDS", 0.2)
    backend = await opened(proxy.dsn)
    task = new_task()
    proxy.forget_the_way()  # for those who come anew
    proxy.lose("answer")
    with pytest.raises(BackendConnectionError, match="the outcome is unknown"):
        await backend.enqueue([task])
    assert proxy.lost.is_set()
    await backend.close()


async def test_a_server_that_falls_silent_is_given_up_in_time(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_operation_runner, "_SEARCH_SECONDS", 0.2)
    backend = await opened(proxy.dsn, statement_timeout=1.0)
    monkeypatch.setattr(_connection, "_CONNECT_SECONDS", 0.3)
    proxy.fall_silent()
    # It depends on whether a notification that had been put off met the silence first.
    told = "outcome is unknown|did not answer in time"
    with anyio.fail_after(20), pytest.raises(BackendConnectionError, match=told):
        await backend.enqueue([new_task()])
    await backend.close()


async def test_the_system_is_asked_to_notice_a_server_that_has_vanished(proxy: Proxy) -> None:
    backend = await opened(proxy.dsn)
    link = await at_rest(backend)
    plug = link._connection._transport.get_extra_info("socket")
    assert plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
    await backend.close()
