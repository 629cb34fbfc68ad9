"""`SyncTaskQueue` does what `TaskQueue` does, in threads without an event loop."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import (
    MsgpackSerializer,
    SQLiteBackend,
    SyncTaskQueue,
    TaskFailedError,
    TaskNotFoundError,
    TaskQueue,
    UsageError,
    ValidationError,
    call,
)
from sitq.ids import new_task_id
from sitq.models import Outcome
from sitq.queue import BoundQueue
from sitq.sync import SyncBoundQueue
from tests.unit.queue_support import SpyBackend, add, greet, remind

LATER = datetime(2031, 5, 6, tzinfo=UTC)
SOME_ID = new_task_id()


class Hand:
    """Ends what is due in a file, as a worker in another process would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finish(self, value: object = None, error: str | None = None) -> None:
        async def work() -> None:
            backend = SQLiteBackend(self.path)
            await backend.open()
            try:
                for task in (await backend.reserve("hand", ("default",), 1000, 30.0)).tasks:
                    data = MsgpackSerializer().dumps(value)
                    outcome = Outcome.success(task.lease, data)
                    if error is not None:
                        outcome = Outcome.failure(task.lease, error)
                    await backend.finish((outcome,))
            finally:
                await backend.close()

        anyio.run(work)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


def test_a_task_goes_in_and_its_value_comes_out(path: Path) -> None:
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        task_id = queue.enqueue(add, 1, b=2)
        assert queue.get_result(task_id, timeout=0) is None
        assert queue.get_result(task_id, timeout=0.01) is None
        with pytest.raises(TimeoutError, match="not final"):
            queue.result(task_id, timeout=0)
        assert queue.get_task(task_id).status == "pending"
        Hand(path).finish(3)
        result = queue.get_result(task_id, timeout=10)
        assert result is not None
        assert queue.deserialize_result(result) == 3
        assert queue.result(task_id) == 3
        again = queue.retry(task_id)
        assert queue.get_task(again).retry_of == task_id
        assert queue.cancel(again) is True
        assert queue.prune(0) == 2


def test_options_and_batches_work_the_same(path: Path) -> None:
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        bound = queue.options(eta=LATER, priority=4)
        ids = [
            bound.enqueue(remind, "tea", eta="soon"),
            queue.enqueue(greet, "you", eta=LATER),
            *bound.enqueue_many([call(add, 1, 2), call(add, 3, 4)]),
            *queue.enqueue_many([call(greet, "you")]),
        ]
        infos = [queue.get_task(task_id) for task_id in ids]
    assert [info.eta == LATER for info in infos] == [True, True, True, True, False]
    assert [info.priority for info in infos] == [4, 0, 4, 4, 0]
    assert "priority=4" in repr(bound)
    assert repr(queue).startswith("SyncTaskQueue(SQLiteBackend(")


def test_errors_are_those_of_the_queue(path: Path) -> None:
    bad: Any = "one"
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        with pytest.raises(ValidationError):
            queue.enqueue(add, bad, 2)
        with pytest.raises(ValidationError, match="naive"):
            queue.options(eta=datetime(2031, 1, 1))
        with pytest.raises(TaskNotFoundError):
            queue.get_task(SOME_ID)
        task_id = queue.enqueue(add, 1, 2)
        Hand(path).finish(error="ValueError: no")
        result = queue.get_result(task_id)
        assert result is not None
        with pytest.raises(TaskFailedError, match="ValueError: no"):
            queue.deserialize_result(result)
        with pytest.raises(TaskFailedError, match="ValueError: no"):
            queue.result(task_id)


def test_it_has_every_method_of_the_queue_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(SyncTaskQueue).keys() - methods(TaskQueue).keys() == {"drain"}
    assert methods(SyncTaskQueue).items() >= methods(TaskQueue).items()
    assert methods(SyncBoundQueue) == methods(BoundQueue)


USES: list[Callable[[SyncTaskQueue], object]] = [
    lambda queue: queue.connect(),
    lambda queue: queue.close(),
    lambda queue: queue.__enter__(),
    lambda queue: queue.enqueue(add, 1, 2),
    lambda queue: queue.enqueue_many([call(add, 1, 2)]),
    lambda queue: queue.options(priority=1),
    lambda queue: queue.get_result(SOME_ID),
    lambda queue: queue.result(SOME_ID),
    lambda queue: queue.get_task(SOME_ID),
    lambda queue: queue.cancel(SOME_ID),
    lambda queue: queue.retry(SOME_ID),
    lambda queue: queue.prune(0),
    lambda queue: queue.drain(),
]


@pytest.mark.anyio
@pytest.mark.parametrize("use", USES)
async def test_in_a_thread_with_an_event_loop_it_points_to_the_queue(
    use: Callable[[SyncTaskQueue], object],
) -> None:
    backend = SpyBackend()
    with pytest.raises(UsageError, match="use TaskQueue"):
        use(SyncTaskQueue(backend))
    assert backend.opened == 0


@pytest.mark.anyio
async def test_from_a_worker_thread_of_an_event_loop_it_works(path: Path) -> None:
    def work() -> str:
        with SyncTaskQueue(SQLiteBackend(path)) as queue:
            return queue.enqueue(add, 1, 2)

    task_id = await anyio.to_thread.run_sync(work)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        assert (await queue.get_task(task_id)).status == "pending"


@pytest.mark.parametrize("use", USES[3:5] + USES[6:])
def test_a_closed_queue_refuses_until_it_is_opened_again(
    use: Callable[[SyncTaskQueue], object],
) -> None:
    queue = SyncTaskQueue(SpyBackend())
    with queue:
        pass
    queue.close()
    with pytest.raises(UsageError, match=r"connect\(\)"):
        use(queue)
    queue.connect()
    assert queue.enqueue(add, 1, 2)
    queue.close()


def test_its_thread_ends_with_the_close() -> None:
    before = set(threading.enumerate())
    with SyncTaskQueue(SpyBackend()) as queue:
        queue.enqueue(add, 1, 2)
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon
    assert not thread.is_alive()


def test_many_threads_share_one_queue(path: Path) -> None:
    ids: list[str] = []
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        start = threading.Barrier(8)

        def work() -> None:
            start.wait()
            ids.extend([queue.enqueue(add, n, n) for n in range(25)])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {queue.get_task(task_id).status.value for task_id in ids} == {"pending"}
    assert len(set(ids)) == 200


class Waiting:
    """A thread that waits for a result, and tells when the loop has begun to."""

    def __init__(self, queue: SyncTaskQueue, task_id: str) -> None:
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(queue, task_id))
        self.thread.start()

    def _run(self, queue: SyncTaskQueue, task_id: str) -> None:
        try:
            queue.get_result(task_id)
        except BaseException as error:
            self.errors.append(error)


class TellingBackend(SpyBackend):
    """A store that tells other threads of looks."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = threading.Event()

    async def get_results(self, task_ids: Any) -> Any:
        results = await super().get_results(task_ids)
        self.looked.set()
        return results


def test_a_close_ends_the_waits_of_other_threads() -> None:
    backend = TellingBackend()
    queue = SyncTaskQueue(backend)
    waiting = Waiting(queue, queue.enqueue(add, 1, 2))
    backend.looked.wait()
    queue.close()
    waiting.thread.join(10)
    assert not waiting.thread.is_alive()
    assert [type(error) for error in waiting.errors] == [UsageError]
    assert (backend.opened, backend.listeners) == (0, 0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_cancels_the_wait_on_the_loop() -> None:
    class Interrupting(SpyBackend):
        async def get_results(self, task_ids: Any) -> Any:
            results = await super().get_results(task_ids)
            if not interrupted.is_set():
                interrupted.set()
                while sys._current_frames()[main].f_code.co_name != "wait":
                    pass  # the main thread is about to wait for the loop
                os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it
            return results

    interrupted = threading.Event()
    main = threading.get_ident()
    backend = Interrupting()
    with SyncTaskQueue(backend) as queue:
        task_id = queue.enqueue(add, 1, 2)
        with pytest.raises(KeyboardInterrupt):
            queue.get_result(task_id)
        while backend.listeners:  # the cancellation travels to the loop's thread
            queue.get_task(task_id)
        assert queue.get_result(task_id, timeout=0) is None


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_script_that_forgets_the_close_ends_by_itself_without_a_word(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import threading
        from sitq import SQLiteBackend, SyncTaskQueue

        def job() -> None: ...

        queue = SyncTaskQueue(SQLiteBackend("q.db"))
        task_id = queue.enqueue(job)
        threading.Thread(target=queue.get_result, args=(task_id,), daemon=True).start()
        print(queue.get_task(task_id).status)
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "pending\n", "")


def test_after_a_fork_the_child_has_to_make_its_own_and_can_end(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import os, sys
        from sitq import SQLiteBackend, SyncTaskQueue, UsageError

        def job() -> None: ...

        with SyncTaskQueue(SQLiteBackend("q.db")) as queue:
            task_id = queue.enqueue(job)
            child = os.fork()
            if not child:
                try:
                    queue.enqueue(job)
                except UsageError as error:
                    assert "fork" in str(error) and "new one" in str(error)
                    with SyncTaskQueue(SQLiteBackend("q.db")) as own:
                        print(own.get_task(task_id).status, flush=True)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(queue.get_task(task_id).status)
        """,
    )
    assert (done.returncode, done.stdout) == (0, "pending\npending\n"), done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads of other tests, and a fork
def test_a_fork_is_not_noticed_by_pid_of_the_parent(path: Path) -> None:
    """The pid is read when the queue opens, so a queue that is made first may fork."""
    queue = SyncTaskQueue(SQLiteBackend(path))
    child = os.fork()
    if not child:
        code = 1
        try:
            with queue:
                queue.enqueue(add, 1, 2)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with queue:
        assert queue.options(delay=timedelta(1)).enqueue(add, 1, 2)
