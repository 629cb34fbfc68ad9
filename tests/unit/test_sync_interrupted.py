"""Nothing that a signal handler raises in a `SyncTaskQueue`, and no lost queue, leaves a loop."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import anyio.to_thread
import pytest

import sitq
from sitq import SQLiteBackend, SyncTaskQueue
from sitq.protocols import Backend
from tests.unit.queue_support import SpyBackend, add

pytestmark = pytest.mark.no_cover  # each call is made at each of its moments

SITQ = os.fspath(Path(sitq.__file__).parent)
LOOP_THREAD = "sitq-sync-queue"


class Interrupt(BaseException):
    """What a signal handler raises in these tests."""


def interrupted(moment: int, function: Callable[[], object]) -> bool:
    """Return whether a call was interrupted at one of the moments at which signals are handled.

    These are the starts of functions and the ends of calls of C functions, in sitq's own code.
    """
    rest = moment

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal rest
        if event in {"call", "c_return"} and frame.f_code.co_filename.startswith(SITQ):
            rest -= 1
            if not rest:
                sys.setprofile(None)
                raise Interrupt

    gc.disable()  # what a finalizer raises is lost
    sys.setprofile(count)
    try:
        function()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return not rest


def loop_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == LOOP_THREAD}


def ended(threads: set[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


def use(queue: SyncTaskQueue) -> None:
    assert queue.get_result(queue.enqueue(add, 1, 2), timeout=0) is None


@pytest.fixture(params=["sqlite", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return SpyBackend()
    return SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # what never began was not awaited
@pytest.mark.parametrize("name", ["connect", "close", "drain", "get_task", "enqueue"])
@pytest.mark.parametrize("reopened_by", ["connect", "close and connect"])
def test_an_interrupted_call_leaves_a_queue_that_can_be_opened_and_closed(
    backend: Backend, name: str, reopened_by: str
) -> None:
    before = loop_threads()
    queue = SyncTaskQueue(backend)
    call: dict[str, Callable[[], object]] = {
        "connect": queue.connect,
        "close": queue.close,
        "drain": queue.drain,
        "get_task": lambda: queue.get_task(task_id),
        "enqueue": lambda: queue.enqueue(add, 1, 2),
    }
    moment, was_interrupted = 1, True
    while was_interrupted:
        if name != "connect":
            queue.connect()
            task_id = queue.enqueue(add, 1, 2)
        was_interrupted = interrupted(moment, call[name])
        if reopened_by != "connect":
            queue.close()
        queue.connect()
        use(queue)
        queue.close()
        assert ended(loop_threads() - before)
        queue.close()
        moment += 1
    assert moment > 10


class StuckBackend(SpyBackend):
    """A store whose closing takes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = threading.Event()
        self.let_go = threading.Event()

    async def close(self) -> None:
        self.closing.set()
        await anyio.to_thread.run_sync(self.let_go.wait)
        await super().close()


def test_a_close_goes_on_without_the_caller_whom_an_interrupt_took_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = StuckBackend()
    queue = SyncTaskQueue(backend)
    queue.connect()
    (thread,) = loop_threads()

    def interrupt(*_: object) -> None:
        backend.closing.wait(10)
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr("sitq._portal._Call.wait", interrupt)
        with pytest.raises(Interrupt):
            queue.close()
    backend.let_go.set()
    assert ended({thread})
    assert backend.opened == 0
    queue.connect()
    use(queue)
    queue.close()
    assert backend.opened == 0


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_queue_that_is_collected_closes_its_store_and_ends_its_thread(
    backend: Backend, in_a_cycle: bool
) -> None:
    before = loop_threads()
    queue = SyncTaskQueue(backend)
    task_id = queue.enqueue(add, 1, 2)
    bound = queue.options(priority=1)
    threads = loop_threads() - before
    if in_a_cycle:
        queue.cycle = queue  # type: ignore[attr-defined]
    del queue
    gc.collect()
    bound.enqueue(add, 3, 4)  # it is still in use
    assert all(thread.is_alive() for thread in threads)
    del bound
    # The next queue may have the same store, and waits for the end of the one before.
    with SyncTaskQueue(backend) as other:
        assert ended(threads)
        assert other.get_task(task_id).status == "pending"
    if isinstance(backend, SpyBackend):
        assert backend.opened == 0


def test_a_finalizer_may_use_the_queue_in_the_middle_of_its_connect(backend: Backend) -> None:
    queue = SyncTaskQueue(backend)
    other: list[str] = []

    def collect(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_new_thread":
            sys.setprofile(None)
            other.append(queue.enqueue(add, 1, 2))

    before = loop_threads()
    sys.setprofile(collect)
    try:
        queue.connect()
    finally:
        sys.setprofile(None)
    assert queue.get_task(*other).status == "pending"
    threads = loop_threads() - before
    assert len(threads) == 1
    queue.close()
    assert ended(threads)
