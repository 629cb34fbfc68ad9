"""Exceptions and values whose classes raise or lie: they end their own attempt and nothing else."""

from __future__ import annotations

import os
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from sitq import RetryPolicy, TaskQueue, TaskStatus, Worker, call
from sitq.backends.memory import MemoryBackend
from sitq.ids import TaskId
from tests.worker.gate import add

pytestmark = [pytest.mark.anyio, pytest.mark.no_cover]

LONG = "SITQ_SOAK" in os.environ
# Attributes that code around an exception or a value may touch.
NAMES = [
    "__class__", "__traceback__", "__cause__", "__context__", "__suppress_context__", "__notes__",
    "__dict__", "__module__", "__doc__", "args", "delay", "exceptions", "message", "name", "code",
    "__str__", "__repr__", "__format__", "__hash__", "__eq__", "__ne__", "__lt__", "__bool__",
    "__len__", "__iter__", "__next__", "__contains__", "__getitem__", "__await__", "__call__",
    "__index__", "__int__", "__float__", "__bytes__", "__fspath__", "__getattr__", "__dir__",
    "__getattribute__", "__setattr__", "__delattr__", "__reduce__", "__reduce_ex__", "__copy__",
    "__deepcopy__", "__enter__", "__exit__", "__aenter__", "__aiter__", "__instancecheck__",
    "__subclasscheck__", "__get_pydantic_core_schema__", "__iadd__", "__sizeof__", "__del__",
    "with_traceback", "add_note", "split", "subgroup", "derive", "send", "throw", "close",
]  # fmt: skip
Mode = Literal["raises", "exits", "lies"]
MODES: list[Mode] = ["raises", "exits", "lies"]
# Where a method stands: `Biting.__str__()`, or an attribute that is computed.
SPECIAL = {"__class__", "__traceback__", "__cause__", "__context__", "__suppress_context__"}
PLAIN = {"__dict__", "__module__", "__doc__", "args", "delay", "exceptions", "message", "name"}
# Python itself prints what is raised there.
SILENT = {"__del__"}


def bite(mode: Mode) -> Any:
    """Return a method that misbehaves."""

    def method(*_: Any, **__: Any) -> Any:
        if mode == "raises":
            raise RuntimeError("bitten")
        if mode == "exits":
            raise SystemExit("bitten")
        return 7

    return method


def biting(bases: tuple[type, ...], name: str, mode: Mode, *, meta: bool) -> Any:
    """Return a class, an attribute of which misbehaves; or one of its class does."""
    method = bite(mode)
    body: dict[str, Any] = {}
    if name not in SILENT:
        body[name] = property(method) if name in SPECIAL | PLAIN else method
    if not meta:
        return type("Biting", bases, body)
    metaclass = type("Meta", (type,), {**body, "__module__": property(method)})
    return metaclass("Biting", bases, {})


def error_of(kind: str, name: str, mode: Mode) -> BaseException:
    """Return an exception that bites."""
    meta = kind.startswith("meta")
    error: BaseException
    if kind.endswith("group"):
        made = biting((ExceptionGroup,), name, mode, meta=meta)
        error = made.__new__(made, "text", [ValueError("leaf")])
    elif kind.endswith("leaf"):
        leaf = biting((Exception,), name, mode, meta=meta)
        error = ExceptionGroup("text", [leaf.__new__(leaf, "leaf")])
    else:
        made = biting((Exception,), name, mode, meta=meta)
        error = made.__new__(made, "text")
    assert issubclass(type(error), BaseException)
    return error


def raise_plainly(kind: str, name: str, mode: Mode) -> None:
    raise error_of(kind, name, mode)


async def raise_at_once(kind: str, name: str, mode: Mode) -> None:
    raise error_of(kind, name, mode)


async def raise_later(kind: str, name: str, mode: Mode) -> None:
    await anyio.lowlevel.checkpoint()
    raise error_of(kind, name, mode)


async def raise_when_cancelled(kind: str, name: str, mode: Mode) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            raise error_of(kind, name, mode)


def return_plainly(kind: str, name: str, mode: Mode) -> Any:
    made = biting((object,), name, mode, meta=kind.startswith("meta"))
    return made.__new__(made)


async def return_at_once(kind: str, name: str, mode: Mode) -> Any:
    return return_plainly(kind, name, mode)


async def return_later(kind: str, name: str, mode: Mode) -> Any:
    await anyio.lowlevel.checkpoint()
    return return_plainly(kind, name, mode)


def cases(kinds: list[str]) -> list[tuple[str, str, Mode]]:
    """All kinds, names and modes; in CI, each name in each mode, of two of six kinds."""
    return [
        (kind, name, mode)
        for k, kind in enumerate(kinds)
        for n, name in enumerate(NAMES)
        for m, mode in enumerate(MODES)
        if LONG or (k + n + m) % min(3, len(kinds)) == 0
    ]


KINDS = ["error", "group", "leaf", "meta error", "meta group", "meta leaf"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("function", "kinds", "timeout"),
    [
        (raise_plainly, KINDS, None),
        (raise_at_once, KINDS, None),
        (raise_later, KINDS, None),
        (raise_later, KINDS, 20.0),
        (raise_when_cancelled, KINDS, None),
        (return_plainly, ["value", "meta value"], None),
        (return_at_once, ["value", "meta value"], None),
        (return_later, ["value", "meta value"], 20.0),
    ],
)
async def test_objects_that_bite_end_their_own_attempt_only(
    function: Any, kinds: list[str], timeout: float | None
) -> None:
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, retry=RetryPolicy(retry_on=(OSError,)))
        await group.start(worker.start)
        bound = queue.options(timeout=timeout)
        calls = [call(function, *case) for case in cases(kinds)]
        ids = await bound.enqueue_many(calls)
        for task_id, each in zip(ids, calls, strict=True):
            result = await queue.get_result(task_id, timeout=20)
            assert result is not None, each
            if function.__name__.startswith("raise"):
                assert result.status is TaskStatus.FAILED, each
        good: TaskId[int] = await queue.enqueue(add, 1, 2)
        result = await queue.get_result(good, timeout=20)
        assert result is not None
        assert queue.deserialize_result(result) == 3
        await worker.stop()


def raise_deep_plainly(depth: int) -> None:
    error: Exception = ValueError("leaf")
    for _ in range(depth):
        error = ExceptionGroup("text", [error])
    raise error


async def raise_deep_at_once(depth: int) -> None:
    raise_deep_plainly(depth)


async def raise_deep_later(depth: int) -> None:
    await anyio.lowlevel.checkpoint()
    raise_deep_plainly(depth)


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("function", [raise_deep_plainly, raise_deep_at_once, raise_deep_later])
async def test_groups_that_lie_deep_in_each_other_fail_their_task(
    function: Any, timeout: float | None
) -> None:
    """Their task is not put back, to be run again at once and for ever."""
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue, Worker(backend, tasks=[function]):
        task_id = await queue.options(timeout=timeout).enqueue(function, 20_000)
        with anyio.fail_after(30):
            result = await queue.get_result(task_id)
        assert result is not None
        assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
        assert result.error == "ExceptionGroup: text (1 sub-exception)"
        task = await queue.get_task(task_id)
        assert task.attempts == 1
        assert await queue.result(await queue.enqueue(add, 1, 2), timeout=30) == 3
