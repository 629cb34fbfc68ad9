"""The stores that the state machine drives: how each is made, called and opened again."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import psycopg

from sitq import SQLiteBackend
from sitq.administration import (
    AdminBackend,
    BulkResult,
    Overview,
    TaskChange,
    TaskFilter,
    TaskPage,
    WorkerInfo,
    WorkerKeeper,
)
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.errors import BackendError, TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import Result, Task, TaskInfo
from sitq.protocols import Clock
from tests.postgres.servers import dsn, new_schema
from tests.properties.history import Call
from tests.properties.lives import present

__all__ = ["Maker", "Place", "Seen", "Store", "memory", "postgres", "private_sqlite", "sqlite_file"]


class Place(NamedTuple):
    """How to get at a store, and how to make it an empty one from outside, where that can be."""

    make: Callable[[], AdminBackend]
    empty: Callable[[], object] | None = None
    forget: Callable[[], object] | None = None


Maker = Callable[[Clock, Path], Place]


def memory(clock: Clock, _folder: Path) -> Place:
    backend = MemoryBackend(clock=clock)
    return Place(lambda: backend)


def sqlite_file(clock: Clock, folder: Path) -> Place:
    path = folder / "tasks.db"

    def empty() -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            for table in ("leases", "tasks", "pauses", "workers"):
                connection.execute(f"DELETE FROM {table}")

    return Place(lambda: SQLiteBackend(path, synchronous="NORMAL", clock=clock), empty)


def private_sqlite(clock: Clock, _folder: Path) -> Place:
    backend = SQLiteBackend(":memory:", clock=clock)
    return Place(lambda: backend)


def postgres(clock: Clock, _folder: Path) -> Place:
    schema = new_schema()
    connection = psycopg.connect(dsn(), autocommit=True)

    def empty() -> None:
        tables = ("tasks", "attempts", "pauses", "workers")
        connection.execute("TRUNCATE " + ", ".join(f'"{schema}".{table}' for table in tables))

    return Place(
        lambda: PostgresBackend(dsn(), schema=schema, clock=clock), empty, connection.close
    )


class Seen(NamedTuple):
    """What some calls answered, and what the store told of all tasks afterwards."""

    answers: list[Any]
    infos: list[TaskInfo | None]
    results: dict[TaskId[Any], Result[Any] | None]


class Store:
    """One store with one lease keeper; errors that the port promises come back as their names."""

    def __init__(self, place: Place, forget: Callable[[], object]) -> None:
        self._place = place
        self._make = place.make
        self._forget = forget
        self._backend: AdminBackend | None = None
        self._keeper: WorkerKeeper | None = None
        self._cursor: str | None = None
        self._kept_cursor: str | None = None

    async def open(self) -> None:
        self._backend = self._make()
        await self._backend.open()
        self._keeper = self._backend.lease_keeper()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        if self._backend is not None:
            await self._backend.close()
        if self._place.forget is not None:
            self._place.forget()
        self._forget()

    @property
    def can_be_emptied(self) -> bool:
        return self._place.empty is not None

    def empty(self) -> None:
        """Delete all tasks from outside, as another program could."""
        present(self._place.empty)()

    async def reopen(self) -> None:
        """Close and open; a store that would not outlive that is opened first."""
        backend, keeper = present(self._backend), present(self._keeper)
        keeper.close()
        if self._make() is backend:
            await backend.open()
            await backend.close()
        else:
            await backend.close()
            self._backend = self._make()
            await self._backend.open()
        self._keeper = self._backend.lease_keeper() if self._backend else None

    async def run(self, calls: Sequence[Call], task_ids: Sequence[TaskId[Any]]) -> Seen:
        """Run calls at once, then look at all tasks."""
        backend = present(self._backend)
        answers: list[Any] = [None] * len(calls)

        async def one(number: int, call: Call) -> None:
            answers[number] = await self._perform(call)

        async with anyio.create_task_group() as group:
            for number, call in enumerate(calls):
                group.start_soon(one, number, call)
        infos = await backend.get_tasks(task_ids)
        return Seen(answers, infos, dict(await backend.get_results(task_ids)))

    async def _perform(self, call: Call) -> Any:
        if call.name in {"renew", "report", "deregister"}:
            return getattr(self._keeper, call.name)(*call.arguments)
        try:
            if call.name in ADMIN_CALLS:
                return await ADMIN_CALLS[call.name](self, *call.arguments)
            return await getattr(self._backend, call.name)(*call.arguments)
        except TaskNotFoundError:
            return "TaskNotFoundError"
        except BackendError:
            return "BackendError"

    # Cursors and the order of what has none differ from store to store.

    def keep_cursor(self) -> None:
        """Remember where a list goes on."""
        self._kept_cursor = self._cursor

    def restore_cursor(self) -> None:
        """Go on with the list that was kept."""
        self._cursor = self._kept_cursor

    async def list_tasks(self, where: TaskFilter, limit: int, is_first: bool) -> TaskPage:
        """Return the first page, or the next one."""
        cursor = None if is_first else self._cursor
        page = await present(self._backend).list_tasks(where, limit, cursor)
        self._cursor = page.cursor
        return page._replace(cursor=page.cursor and "more")

    async def change_tasks(
        self, change: TaskChange, where: TaskFilter, limit: int, is_first: bool, is_dry: bool
    ) -> BulkResult:
        """Change the first tasks, or the next ones."""
        cursor = None if is_first else self._cursor
        backend = present(self._backend)
        result = await backend.change_tasks(change, where, limit, cursor, dry_run=is_dry)
        self._cursor = result.cursor
        return result._replace(cursor=result.cursor and "more")

    async def retry_tasks(self, repeats: Sequence[Task], again: bool) -> list[TaskId[Any] | None]:
        """Repeat tasks."""
        return await present(self._backend).retry_tasks(repeats, again=again)

    async def list_workers(self) -> list[WorkerInfo]:
        """Return the workers, each with its tasks in order."""
        return [_in_order(each) for each in await present(self._backend).list_workers()]

    async def overview(self) -> Overview:
        """Return the overview, with the tasks of each worker in order."""
        view = await present(self._backend).overview()
        return view._replace(workers=tuple(map(_in_order, view.workers)))


def _in_order(worker: WorkerInfo) -> WorkerInfo:
    return worker.model_copy(update={"tasks": tuple(sorted(worker.tasks))})


ADMIN_CALLS: dict[str, Callable[..., Awaitable[Any]]] = {
    "list_tasks": Store.list_tasks,
    "change_tasks": Store.change_tasks,
    "retry_tasks": Store.retry_tasks,
    "list_workers": Store.list_workers,
    "overview": Store.overview,
}
