"""Types of functions under the usual decorators, for mypy and pyright to read; never run.

A decorator is often annotated ``Callable[P, Coroutine[Any, Any, R]]``. With a type that holds
``Any``, mypy gives up if more than one overload fits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, NotRequired, ParamSpec, TypedDict, TypeVar, Unpack, assert_type

from sitq import Call, Result, SyncTaskQueue, TaskId, TaskQueue, call, task

P = ParamSpec("P")
R = TypeVar("R")


def traced(func: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The usual decorator of async functions."""
    return func


def awaited(func: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """One that promises less."""
    return func


def passed(func: Callable[P, R]) -> Callable[P, R]:
    """One for functions of both kinds."""
    return func


@traced
async def add(a: int, b: int = 0) -> int:
    """A coroutine function to type checkers, with ``Any`` in its type."""
    return a + b


@task(queue="q")
@traced
async def find(name: str) -> str | None:
    """Marked above another decorator."""
    return name


@awaited
async def sleep(seconds: float) -> None:
    """An awaitable function."""


@passed
def load(path: str) -> dict[str, Any]:
    """A plain function, with ``Any`` in its result."""
    return {"path": path}


@traced
async def rows(limit: int) -> list[dict[str, Any]]:
    """``Any`` in both places."""
    return [{"limit": limit}]


class Settings(TypedDict):
    """Keywords of a function."""

    size: int
    title: NotRequired[str]


async def show(name: str, **settings: Unpack[Settings]) -> bytes:
    """A function of unpacked keywords."""
    return bytes(settings["size"])


async def enqueueing(queue: TaskQueue, eta: datetime, connection: sqlite3.Connection) -> None:
    """The result is that of the function, not its coroutine."""
    assert_type(await queue.enqueue(add, 1, b=2), TaskId[int])
    assert_type(await queue.enqueue(add, 1, 2, eta=eta), TaskId[int])
    assert_type(await queue.enqueue(find, "a"), TaskId[str | None])
    assert_type(await queue.enqueue(sleep, 1.5), TaskId[None])
    assert_type(await queue.enqueue(sleep, 1.5, eta=None), TaskId[None])
    assert_type(await queue.enqueue(load, "a"), TaskId[dict[str, Any]])
    assert_type(await queue.enqueue(load, "a", eta=eta), TaskId[dict[str, Any]])
    assert_type(await queue.enqueue(rows, 1), TaskId[list[dict[str, Any]]])
    assert_type(await queue.enqueue(show, "a", size=1), TaskId[bytes])
    assert_type(await queue.options(delay=1).enqueue(add, 1), TaskId[int])
    assert_type(await queue.options(delay=1).enqueue(rows, 1), TaskId[list[dict[str, Any]]])
    assert_type(await queue.bind(connection).enqueue(add, 1), TaskId[int])
    assert_type(await queue.bind(connection).options(delay=1).enqueue(add, 1), TaskId[int])
    assert_type(call(add, 1), Call[int])
    assert_type(call(load, "a"), Call[dict[str, Any]])
    assert_type(await queue.enqueue_many([call(add, 1), call(add, 2)]), list[TaskId[int]])
    result = await queue.get_result(await queue.enqueue(add, 1), timeout=1)
    assert_type(result, Result[int] | None)

    await queue.enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await queue.enqueue(find, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue(load, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.enqueue(show, "a", size="1")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.options(delay=1).enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await queue.bind(connection).enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    call(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    wrong: TaskId[str] = await queue.enqueue(add, 1)  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]
    print(wrong)


def from_plain_code(queue: SyncTaskQueue, eta: datetime, connection: sqlite3.Connection) -> None:
    """The same types without ``async``."""
    assert_type(queue.enqueue(add, 1, b=2), TaskId[int])
    assert_type(queue.enqueue(add, 1, eta=eta), TaskId[int])
    assert_type(queue.enqueue(load, "a"), TaskId[dict[str, Any]])
    assert_type(queue.options(delay=1).enqueue(add, 1), TaskId[int])
    assert_type(queue.bind(connection).enqueue(add, 1), TaskId[int])
    assert_type(queue.bind(connection).options(delay=1).enqueue(find, "a"), TaskId[str | None])
    assert_type(queue.enqueue_many([call(rows, 1)]), list[TaskId[list[dict[str, Any]]]])

    queue.enqueue(add, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    queue.options(delay=1).enqueue(add)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    queue.bind(connection).enqueue(find, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
