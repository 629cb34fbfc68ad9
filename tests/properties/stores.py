"""The stores that the state machine drives: how each is made, called and opened again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from sitq import SQLiteBackend
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.errors import BackendError, TaskNotFoundError
from sitq.ids import TaskId
from sitq.models import Result, TaskInfo
from sitq.protocols import Backend, Clock, LeaseKeeper
from tests.postgres.servers import dsn, new_schema
from tests.properties.history import Call
from tests.properties.lives import present

__all__ = ["Maker", "Seen", "Store", "memory", "postgres", "private_sqlite", "sqlite_file"]

Maker = Callable[[Clock, Path], Callable[[], Backend]]


def memory(clock: Clock, _folder: Path) -> Callable[[], Backend]:
    backend = MemoryBackend(clock=clock)
    return lambda: backend


def sqlite_file(clock: Clock, folder: Path) -> Callable[[], Backend]:
    return lambda: SQLiteBackend(folder / "tasks.db", synchronous="NORMAL", clock=clock)


def private_sqlite(clock: Clock, _folder: Path) -> Callable[[], Backend]:
    backend = SQLiteBackend(":memory:", clock=clock)
    return lambda: backend


def postgres(clock: Clock, _folder: Path) -> Callable[[], Backend]:
    schema = new_schema()
    return lambda: PostgresBackend(dsn(), schema=schema, clock=clock)


class Seen(NamedTuple):
    """What some calls answered, and what the store told of all tasks afterwards."""

    answers: list[Any]
    infos: list[TaskInfo | None]
    results: dict[TaskId[Any], Result[Any] | None]


class Store:
    """One store with one lease keeper; errors that the port promises come back as their names."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._make = make
        self._backend: Backend | None = None
        self._keeper: LeaseKeeper | None = None

    async def open(self) -> None:
        self._backend = self._make()
        await self._backend.open()
        self._keeper = self._backend.lease_keeper()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        if self._backend is not None:
            await self._backend.close()

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
        if call.name == "renew":
            return present(self._keeper).renew(*call.arguments)
        try:
            return await getattr(self._backend, call.name)(*call.arguments)
        except TaskNotFoundError:
            return "TaskNotFoundError"
        except BackendError:
            return "BackendError"
