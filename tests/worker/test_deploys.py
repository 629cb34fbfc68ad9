"""Two versions of a program at once: what one stores, a worker of the other takes or leaves."""

from __future__ import annotations

import logging
import re
import sys
import types
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import SQLiteBackend, TaskId, TaskQueue, TaskStatus, Worker, call
from sitq.backends.memory import MemoryBackend
from sitq.protocols import Backend
from sitq.testing import FakeClock
from tests.worker.gate import working

pytestmark = pytest.mark.anyio

HEAD = """
from pydantic import BaseModel, field_validator
from typing import Unpack, TypedDict
"""


@pytest.fixture
def program() -> Iterator[types.ModuleType]:
    module = types.ModuleType("deployed_program")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def deploy(program: types.ModuleType, source: str) -> None:
    exec(HEAD + source, program.__dict__)


@pytest.fixture(params=["sqlite", "memory"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[TaskQueue, Backend, FakeClock]]:
    clock = FakeClock()
    backend: Backend = MemoryBackend(clock=clock)
    if request.param == "sqlite":
        backend = SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL", clock=clock)
    async with TaskQueue(backend) as queue:
        yield queue, backend, clock


async def test_a_keyword_reaches_its_parameter_after_a_deploy_that_moves_parameters(
    stage: tuple[TaskQueue, Backend, FakeClock], program: types.ModuleType
) -> None:
    queue, backend, _ = stage
    deploy(program, "def send(to: str, html: bool = False) -> str: ...")
    task_id = await queue.enqueue(program.send, "ada", html=True)
    deploy(
        program,
        "async def send(to: str, urgent: bool = False, html: bool = False) -> str:\n"
        "    return f'{urgent=} {html=}'",
    )
    await Worker(backend, tasks=[program]).drain()
    assert await queue.result(task_id, timeout=0) == "urgent=False html=True"


OLD = "class User(BaseModel):\n    name: str\n"
NEW = OLD + "    phone: int = 7\n"
LOOKS_UP = """
    @field_validator("name")
    def check(cls, value):
        return {}[value]
"""


@pytest.mark.parametrize(
    ("stored", "written", "worker", "text"),
    [
        ("def f(a, b): ...", "f(1, 2)", "def f(a): ...", "too many positional arguments"),
        ("def f(a, b=0): ...", "f(1, b=2)", "def f(a): ...", "unexpected keyword argument 'b'"),
        ("def f(a): ...", "f(1)", "def f(a, b): ...", "missing a required argument: 'b'"),
        ("def f(a): ...", "f(a=1)", "def f(a, /): ...", "positional"),
        ("def f(a): ...", "f(1)", "def f(*, a): ...", "too many positional arguments"),
        ("def f(a: str): ...", "f('secret')", "def f(a: int): ...", "parameter 'a': .*got str"),
        ("def f(a): ...", "f(1)", "def f(a: Missing): ...", "'a': its annotation Missing cannot"),
        (
            f"{NEW}def f(a: User): ...",
            "f(User(name='secret'))",
            f"{OLD}def f(a: User): ...",
            "parameter 'a': unknown field 'phone'",
        ),
        (
            f"{NEW}def f(a: list[User]): ...",
            "f(a=[User(name='secret')])",
            f"{OLD}def f(a: list[User]): ...",
            "parameter 'a': at 0: unknown field 'phone'",
        ),
        (
            "def f(**more): ...",
            "f(x=1, y=2)",
            "class Keys(TypedDict):\n    x: int\ndef f(**more: Unpack[Keys]): ...",
            "unexpected keyword argument 'y'",
        ),
        (
            f"{OLD}def f(a: User): ...",
            "f(User(name='secret'))",
            f"{OLD}{LOOKS_UP}def f(a: User): ...",
            "parameter 'a': its validator raised KeyError",
        ),
    ],
)
async def test_arguments_that_do_not_fit_here_are_put_back_and_fail_in_the_end(
    stage: tuple[TaskQueue, Backend, FakeClock],
    program: types.ModuleType,
    caplog: pytest.LogCaptureFixture,
    stored: str,
    written: str,
    worker: str,
    text: str,
) -> None:
    queue, backend, clock = stage
    deploy(program, stored)
    task_id = await enqueue(queue, program, written)
    deploy(program, worker)
    for tries in range(9):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert await Worker(backend, tasks=[program]).drain() == 0
        info = await queue.get_task(task_id)
        assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)
        pause = min(2.0**tries, 60)
        assert (info.eta - clock.now()).total_seconds() == pytest.approx(pause)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert re.search(f"{task_id} is put back .*deployed_program:f .*{text}", caplog.text)
        assert "secret" not in caplog.text
        clock.advance(pause)
    await Worker(backend, tasks=[program]).drain()
    result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
    assert re.search(f"ValidationError: f.*{text}.*no worker that takes them", str(result.error))
    assert "secret" not in str(result.error)


async def test_a_task_that_was_put_back_runs_once_a_worker_takes_its_arguments(
    stage: tuple[TaskQueue, Backend, FakeClock], program: types.ModuleType
) -> None:
    queue, backend, clock = stage
    newer = f"{NEW}def f(a: User) -> int:\n    return a.phone"
    deploy(program, newer)
    task_id = await enqueue(queue, program, "f(User(name='ada', phone=3))")
    deploy(program, f"{OLD}def f(a: User) -> str:\n    return a.name")
    await Worker(backend, tasks=[program]).drain()
    deploy(program, newer)
    clock.advance(1)
    await Worker(backend, tasks=[program]).drain()
    assert await queue.result(task_id, timeout=0) == 3
    assert (await queue.get_task(task_id)).attempts == 1


async def test_a_worker_that_has_put_a_task_back_lets_others_look_first(
    queue: TaskQueue, tmp_path: Path, program: types.ModuleType
) -> None:
    deploy(program, "def f(a, b): ...")
    task_id = await enqueue(queue, program, "f(1, 2)")
    deploy(program, "def f(a): ...")
    etas = [(await queue.get_task(task_id)).eta]
    async with working(tmp_path, tasks=[program]):
        while len(etas) < 3:
            eta = (await queue.get_task(task_id)).eta
            if eta != etas[-1]:
                etas.append(eta)
            await anyio.sleep(0.005)
    put_back_again = (etas[2] - timedelta(seconds=2)).timestamp()
    assert put_back_again - etas[1].timestamp() >= 0.1


async def enqueue(queue: TaskQueue, program: types.ModuleType, source: str) -> TaskId[Any]:
    """Enqueue a call of the program's function that is written down."""
    written = eval(source, {**vars(program), "f": partial(call, program.f)})
    return (await queue.enqueue_many([written]))[0]
