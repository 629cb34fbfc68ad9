"""Extensions around attempts: where they run, what passes through them, and what they may do."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    Extension,
    Fail,
    Retry,
    RetryPolicy,
    SQLiteBackend,
    TaskContext,
    TaskQueue,
    TaskStatus,
    ValidationError,
    Worker,
    current_task,
)
from sitq.backends.memory import MemoryBackend
from tests.worker.gate import GATE, add, ended, fail, multiply, until

pytestmark = pytest.mark.anyio

Next = Callable[[], Awaitable[object]]
WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Notes(Extension):
    """Notes what goes through it."""

    def __init__(self, name: str = "one") -> None:
        self.name = name

    def note(self, text: str) -> None:
        GATE.log.append(f"{self.name} {text}")

    async def around_attempt(self, context: TaskContext, call_next: Next) -> object:
        assert current_task() is context
        self.note("before")
        try:
            value = await call_next()
        except BaseException as error:
            self.note(f"raised {type(error).__name__}")
            raise
        self.note(f"after {value}")
        return value


class NotesInThread(Notes):
    around_attempt = Extension.around_attempt

    def around_attempt_sync(self, context: TaskContext, call_next: Callable[[], object]) -> object:
        assert current_task() is context
        self.note("before, in a thread" if GATE.log is not None else "")
        GATE.running = threading.get_ident()
        value = call_next()
        self.note(f"after {value}")
        return value


class Does(Extension):
    def __init__(self, what: Callable[[TaskContext, Next], Awaitable[object]]) -> None:
        self.what = what

    async def around_attempt(self, context: TaskContext, call_next: Next) -> object:
        return await self.what(context, call_next)


class DoesInThread(Extension):
    def __init__(self, what: Callable[[Callable[[], object]], object]) -> None:
        self.what = what

    def around_attempt_sync(self, context: TaskContext, call_next: Callable[[], object]) -> object:
        return self.what(call_next)


def who() -> str:
    return WHO.get()


async def who_on_loop() -> str:
    return WHO.get()


def which_thread() -> int:
    return threading.get_ident()


def awaitable() -> Awaitable[int]:
    return add(3, 4)


@pytest.fixture
async def run(tmp_path: Path) -> Any:
    """Enqueue a call, run it by a worker with extensions, and return its result."""

    async def run(function: Any, *args: Any, extensions: list[Extension], **options: Any) -> Any:
        backend = SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")
        async with TaskQueue(backend) as queue:
            task_id = await queue.options(**options).enqueue(function, *args)
            await Worker(backend, extensions=extensions, cancel_grace=2.0).drain()
            return await queue.get_result(task_id, timeout=0)

    return run


@pytest.mark.parametrize(("function", "value"), [(add, 7), (multiply, 12)])
async def test_several_nest_in_the_order_given(run: Any, function: Any, value: int) -> None:
    result = await run(function, 3, 4, extensions=[Notes("outer"), Notes("inner")])
    assert result.status is TaskStatus.SUCCESS
    assert GATE.log == [
        "outer before",
        "inner before",
        f"inner after {value}",
        f"outer after {value}",
    ]


async def test_the_methods_of_the_base_class_pass_through(run: Any) -> None:
    class Calls(Extension):
        async def around_attempt(self, context: TaskContext, call_next: Next) -> object:
            return await super().around_attempt(context, call_next)

        def around_attempt_sync(
            self, context: TaskContext, call_next: Callable[[], object]
        ) -> object:
            return super().around_attempt_sync(context, call_next)

        def on_event(self, event: Any) -> None:
            super().on_event(event)

    assert (await run(multiply, 3, 4, extensions=[Calls()])).value == b"\x0c"


async def test_around_a_plain_function_that_returns_an_awaitable_is_all_of_it(run: Any) -> None:
    await run(awaitable, extensions=[Notes()])
    assert GATE.log == ["one before", "one after 7"]


async def test_around_attempt_sync_runs_in_the_thread_of_a_plain_function_only(run: Any) -> None:
    extensions = [NotesInThread("outer"), Notes("async"), NotesInThread("inner")]
    result = await run(which_thread, extensions=extensions)
    assert result.status is TaskStatus.SUCCESS
    thread = GATE.running
    assert thread != threading.get_ident()
    assert GATE.log == [
        "async before",
        "outer before, in a thread",
        "inner before, in a thread",
        f"inner after {thread}",
        f"outer after {thread}",
        f"async after {thread}",
    ]
    GATE.log.clear()
    await run(add, 1, 2, extensions=[NotesInThread()])
    assert GATE.log == []


@pytest.mark.parametrize("function", [who, who_on_loop])
async def test_the_function_sees_the_context_variables_and_no_other_attempt_does(
    run: Any, function: Any
) -> None:
    async def introduce(context: TaskContext, call_next: Next) -> object:
        assert WHO.get() == "nobody"
        WHO.set(f"attempt {context.attempt}")
        return await call_next()

    for _ in range(2):
        result = await run(function, extensions=[Does(introduce)])
        assert b"attempt 1" in result.value
    assert WHO.get() == "nobody"


async def test_it_runs_in_the_attempts_own_task(run: Any) -> None:
    seen: list[int] = []

    async def note(context: TaskContext, call_next: Next) -> object:
        seen.append(anyio.get_current_task().id)
        return await call_next()

    result = await run(own_task, extensions=[Does(note)])
    assert str(seen[0]).encode() in result.value
    assert seen[0] != anyio.get_current_task().id


async def own_task() -> str:
    return str(anyio.get_current_task().id)


@pytest.mark.parametrize("function", [add, multiply])
async def test_a_raise_is_the_attempts_failure_with_its_traceback(run: Any, function: Any) -> None:
    async def refuse(context: TaskContext, call_next: Next) -> object:
        raise PermissionError("not today")

    result = await run(function, 1, 2, extensions=[Does(refuse)])
    assert (result.status, result.error) == (TaskStatus.FAILED, "PermissionError: not today")
    assert "in refuse" in result.traceback
    assert "src/sitq" not in result.traceback


async def test_a_raise_after_the_call_is_a_failure_too(run: Any) -> None:
    async def check(context: TaskContext, call_next: Next) -> object:
        raise ValueError(f"{await call_next()} is wrong")

    result = await run(add, 1, 2, extensions=[Does(check)])
    assert result.error == "ValueError: 3 is wrong"


def refuse_in_thread(call_next: Callable[[], object]) -> object:
    raise PermissionError("not here")


async def test_a_raise_in_the_thread_is_a_failure_too(run: Any) -> None:
    result = await run(multiply, 1, 2, extensions=[DoesInThread(refuse_in_thread)])
    assert (result.status, result.error) == (TaskStatus.FAILED, "PermissionError: not here")
    assert "in refuse_in_thread" in result.traceback
    assert "src/sitq" not in result.traceback


async def test_the_error_of_the_function_passes_through_with_its_traceback(run: Any) -> None:
    for extensions in ([Notes()], [Notes(), DoesInThread(lambda call_next: call_next())]):
        GATE.log.clear()
        result = await run(fail, "text", extensions=extensions)
        assert (result.status, result.error) == (TaskStatus.FAILED, "ValueError: text")
        assert "in fail" in result.traceback
        assert GATE.log == ["one before", "one raised ValueError"]


async def test_an_error_can_be_answered_and_retry_and_fail_are_understood(run: Any) -> None:
    async def answer(context: TaskContext, call_next: Next) -> object:
        try:
            return await call_next()
        except ValueError:
            return "answered"

    async def retry(context: TaskContext, call_next: Next) -> object:
        if context.attempt == 1:
            raise Retry(delay=0)
        return await call_next()

    async def give_up(context: TaskContext, call_next: Next) -> object:
        raise Fail("given up")

    assert b"answered" in (await run(say, "", extensions=[Does(answer)])).value
    policy = RetryPolicy(max_attempts=3, delay=0)
    result = await run(say, "a", extensions=[Does(retry)], retry=policy)
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 2)
    result = await run(say, "a", extensions=[Does(give_up)], retry=policy)
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)


def say(text: str) -> str:
    if not text:
        raise ValueError("nothing to say")
    return text


async def test_what_it_returns_is_the_result_and_is_checked(run: Any) -> None:
    async def replace(context: TaskContext, call_next: Next) -> object:
        return int(str(await call_next())) * 10

    async def forget(context: TaskContext, call_next: Next) -> object:
        await call_next()
        return None

    assert (await run(add, 1, 2, extensions=[Does(replace)])).value == b"\x1e"
    result = await run(add, 1, 2, extensions=[Does(forget)])
    assert result.status is TaskStatus.FAILED
    assert "return value" in result.error


@pytest.mark.parametrize("function", [add, multiply])
async def test_the_function_is_called_once(run: Any, function: Any) -> None:
    async def twice(context: TaskContext, call_next: Next) -> object:
        await call_next()
        return await call_next()

    result = await run(function, 1, 2, extensions=[Does(twice)])
    assert "Does.around_attempt: call_next was called before" in result.error


async def test_the_function_is_called_once_in_its_thread(run: Any) -> None:
    result = await run(
        multiply, 1, 2, extensions=[DoesInThread(lambda call_next: (call_next(), call_next()))]
    )
    assert "DoesInThread.around_attempt_sync: call_next was called before" in result.error


async def test_a_function_that_is_not_called_does_not_run(run: Any) -> None:
    async def skip(context: TaskContext, call_next: Next) -> object:
        return None

    result = await run(mark, extensions=[Does(skip)])
    assert result.status is TaskStatus.SUCCESS
    assert not GATE.entered.is_set()


def mark() -> None:
    GATE.enter()


async def endless_here() -> None:
    GATE.enter()
    await anyio.sleep_forever()


def endless_in_thread() -> None:
    GATE.enter()
    GATE.opened.wait(20)


class CleansUp(Extension):
    async def around_attempt(self, context: TaskContext, call_next: Next) -> object:
        try:
            return await call_next()
        finally:
            await anyio.sleep(0.01)
            GATE.log.append("cleaned up")


@pytest.mark.parametrize("function", [endless_here, endless_in_thread])
async def test_a_timeout_reaches_it_and_it_has_the_grace_to_clean_up(
    run: Any, function: Any
) -> None:
    result = await run(function, extensions=[CleansUp()], timeout=0.1)
    GATE.opened.set()
    assert result.error.startswith("TimeoutError: the attempt ran out of its timeout")
    assert GATE.log == ["cleaned up"]


async def test_a_timeout_counts_for_what_it_does_itself(run: Any) -> None:
    async def wait(context: TaskContext, call_next: Next) -> object:
        await anyio.sleep_forever()
        return await call_next()

    result = await run(mark, extensions=[Does(wait)], timeout=0.1)
    assert result.error.startswith("TimeoutError")
    assert not GATE.entered.is_set()


async def test_a_cancellation_reaches_it(queue: TaskQueue, tmp_path: Path) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), extensions=[Notes(), CleansUp()])
    async with worker:
        task_id = await queue.enqueue(endless_here)
        await until(GATE.entered.is_set)
        await queue.cancel(task_id)
        assert (await ended(queue, task_id)).status is TaskStatus.CANCELLED
    assert GATE.log[:2] == ["one before", "cleaned up"]
    assert GATE.log[2] in {"one raised CancelledError", "one raised Cancelled"}


async def test_a_stop_hands_the_task_back_after_the_clean_up(
    queue: TaskQueue, tmp_path: Path
) -> None:
    worker = Worker(SQLiteBackend(tmp_path / "q.db"), extensions=[CleansUp()], shutdown_timeout=0.0)
    async with worker:
        task_id = await queue.enqueue(endless_in_thread)
        await until(GATE.entered.is_set)
    GATE.opened.set()
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.PENDING, 0)
    assert GATE.log == ["cleaned up"]


def fork() -> int:
    child = os.fork()
    if child == 0:
        return -1  # the child comes back to the extension, if it can
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def fork_on_loop() -> int:
    return fork()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("function", [fork, fork_on_loop])
async def test_no_code_of_an_extension_runs_after_a_fork(
    run: Any, function: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    async def note(context: TaskContext, call_next: Next) -> object:
        value = await call_next()
        with log.open("a") as file:
            file.write("after\n")
        return value

    def note_in_thread(call_next: Callable[[], object]) -> object:
        value = call_next()
        with log.open("a") as file:
            file.write("in thread\n")
        return value

    result = await run(function, extensions=[Does(note), DoesInThread(note_in_thread)])
    assert result.value == b"\x00"
    assert log.read_text() == ("in thread\nafter\n" if function is fork else "after\n")


async def test_the_methods_that_are_called_are_of_the_right_kind() -> None:
    class AsyncEvents(Extension):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            pass

    class AsyncSync(Extension):
        async def around_attempt_sync(self, context: Any, call_next: Any) -> object:
            return None

    for extension, name in ((AsyncEvents(), "on_event"), (AsyncSync(), "around_attempt_sync")):
        with pytest.raises(ValidationError, match=f"{name} must be a plain function, not async"):
            Worker(MemoryBackend(), extensions=[extension])


async def test_without_one_that_overrides_them_nothing_is_loaded(run: Any) -> None:
    sys.modules.pop("sitq.worker._around_attempt", None)
    await run(add, 1, 2, extensions=[Extension()])
    await run(multiply, 1, 2, extensions=[Extension()])
    assert "sitq.worker._around_attempt" not in sys.modules
