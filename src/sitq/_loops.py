"""Event loops of asyncio and trio: find one, call into one from other threads, or run one."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

    import trio

__all__ = [
    "LoopRef",
    "LoopThread",
    "SharedEvent",
    "in_event_loop",
    "no_op",
    "refuse_green_threads",
    "run_inline",
    "run_to_completion",
]

T = TypeVar("T")

# sitq's threads and loops are built on these modules. With one of them patched, they hang.
_PATCHED_BY_GEVENT: Final = ("threading", "select", "queue")


def _trio_token() -> trio.lowlevel.TrioToken | None:
    # Not imported here; another thread may be importing it now.
    lowlevel = sys.modules.get("trio.lowlevel")
    in_trio_task = getattr(lowlevel, "in_trio_task", None)
    if lowlevel is None or in_trio_task is None or not in_trio_task():
        return None
    token: trio.lowlevel.TrioToken = lowlevel.current_trio_token()
    return token


def in_event_loop() -> bool:
    """Return whether the calling thread runs an event loop."""
    # `get_running_loop` raises where there is none: half the time of the whole check.
    running: object = asyncio._get_running_loop()  # noqa: SLF001 - exported by asyncio
    return running is not None or _trio_token() is not None


def refuse_green_threads(what: str) -> None:
    """Refuse to start something that needs system threads if gevent has replaced them.

    Args:
        what: what needs the threads, for the error's text.

    Raises:
        UsageError: gevent has patched what threads and event loops are made of.
    """
    # Not imported here: only where it is in use already.
    is_patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    if is_patched is None:
        return
    patched = [module for module in _PATCHED_BY_GEVENT if is_patched(module)]
    if patched:
        raise UsageError(
            f"{what} needs the system's threads, but gevent.monkey has patched "
            f"{', '.join(patched)} in this process: use sitq in a process that is not patched, "
            "such as a gunicorn worker of the class gthread, or leave these out by "
            "patch_all(thread=False, select=False, queue=False)"
        )


def _asyncio_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "no event loop of asyncio or trio runs in this thread: await this in an async function "
            "that one of them runs, asyncio.run(main()) say; code without an event loop uses "
            "SyncTaskQueue"
        ) from None


class LoopRef:
    """A reference to a running event loop, for use in any thread."""

    __slots__ = ("_pid", "_trio", "asyncio")

    def __init__(self) -> None:
        """Refer to the loop that the caller runs in.

        Raises:
            UsageError: the caller runs in no loop.
        """
        self._trio: Final = _trio_token()
        # The loop itself if it is asyncio's.
        self.asyncio: Final = None if self._trio else _asyncio_loop()
        self._pid: Final = os.getpid()

    @property
    def inherited(self) -> bool:
        """Return whether this process was forked while the loop ran."""
        return self._pid != os.getpid()

    @property
    def is_here(self) -> bool:
        """Return whether the caller runs in this loop, and in the process that it was made in.

        Raises:
            UsageError: the caller runs in no loop.
        """
        if self._pid != os.getpid():
            return False
        token = _trio_token()
        return token is self._trio if token else _asyncio_loop() is self.asyncio

    @property
    def ended(self) -> bool:
        """Return whether the loop has ended."""
        if self.asyncio is not None:
            return self.asyncio.is_closed()
        # A look from inside wakes nothing.
        return _trio_token() is not self._trio and not self.call_soon(no_op)

    def at_end(self, function: Callable[[], object]) -> Callable[[], object]:
        """Call ``function`` when this loop, trio's, ends; to be used inside the loop.

        Returns a function that revokes this, from any thread.
        """
        import trio

        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                try:
                    await trio.sleep_forever()
                finally:
                    if not scope.cancel_called:
                        function()

        trio.lowlevel.spawn_system_task(wait)
        return lambda: self.call_soon(scope.cancel)

    def when_readable(self, file: int, function: Callable[[], object]) -> Callable[[], object]:
        """Call ``function`` whenever a file is readable; to be used inside the loop.

        Returns a function that ends this, inside the loop too; call it before the file is closed.
        """
        if self.asyncio is not None:
            self.asyncio.add_reader(file, function)
            return partial(self.asyncio.remove_reader, file)
        import trio

        ended = False

        async def wait() -> None:
            with suppress(trio.ClosedResourceError):
                while not ended:
                    await trio.lowlevel.wait_readable(file)
                    if not ended:
                        function()

        def end() -> None:
            nonlocal ended
            ended = True  # the task may not wait yet
            trio.lowlevel.notify_closing(file)

        trio.lowlevel.spawn_system_task(wait)
        return end

    def call_later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        """Have the loop call ``function`` after ``seconds``; from the loop's own thread.

        Returns a function that revokes this, from the same thread.
        """
        if self.asyncio is not None:
            return self.asyncio.call_later(seconds, function).cancel
        import trio

        scope = trio.CancelScope()

        async def call() -> None:
            with scope:
                await trio.sleep(seconds)
                function()

        trio.lowlevel.spawn_system_task(call)
        return scope.cancel

    def before_waiting(self, function: Callable[[], object]) -> None:
        """Have the loop call ``function`` before it waits for events again; from its own thread."""
        if self.asyncio is not None:
            # asyncio handles new events only after the callbacks that are already scheduled.
            self.asyncio.call_soon(function)
            return
        import trio

        class Instrument(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
                trio.lowlevel.remove_instrument(self)
                function()

        trio.lowlevel.add_instrument(Instrument())

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Have the loop call ``function`` soon, from any thread; return False if it has ended."""
        try:
            if self._trio is not None:
                self._trio.run_sync_soon(function)
            elif self.asyncio is not None:
                self.asyncio.call_soon_threadsafe(function)
        except (RuntimeError, OSError):  # trio.RunFinishedError; or its socket is closed already
            return False
        return True


def no_op() -> None:
    """No-op callback."""


class SharedEvent:
    """An event that any thread may set and that any number of loops may wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._waiting: list[tuple[LoopRef, anyio.Event]] = []

    def set(self) -> None:
        """Set the event: all waiting calls return, and later ones return at once."""
        with self._lock:
            self._set = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon(event.set)

    async def wait(self) -> None:
        """Wait until it is set."""
        entry = (LoopRef(), anyio.Event())
        with self._lock:
            if self._set:
                return
            self._waiting.append(entry)
        try:
            await entry[1].wait()
        finally:
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)


class LoopThread:
    """An asyncio loop in a daemon thread, which never keeps the process alive."""

    def __init__(self, name: str) -> None:
        """Prepare the loop, without starting it.

        Args:
            name: the thread's name.

        Raises:
            UsageError: gevent has replaced the threads of this process.
        """
        refuse_green_threads("a queue with an event loop of its own")
        self._name: Final = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._claim: Final = threading.Lock()
        self._made: Final = threading.Lock()
        self._made.acquire()
        self._thread: threading.Thread | None = None
        self._ending = False

    def start(self) -> None:
        """Run the loop, unless it runs already; also after an interrupt in the middle of this.

        The thread makes it: no signal handler runs there.
        """
        if not self._claim.locked():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # the first start was interrupted, but its thread has begun
        self._thread = threading.current_thread()
        try:
            loop = self._loop = asyncio.new_event_loop()
        except BaseException as error:  # noqa: BLE001 - it is raised where the loop is asked for
            self._error = error
            return
        finally:
            self._made.release()
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(self._end_tasks())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _end_tasks(self) -> None:
        """Cancel all tasks that still run, so that no caller waits for them for ever."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, once it has been started.

        Raises:
            OSError: the process has no file descriptors left.
        """
        with self._made:
            pass
        if self._loop is None:
            raise self._error or RuntimeError("there is no loop")
        return self._loop

    @property
    def is_alive(self) -> bool:
        """Return whether the thread runs; False in a forked process."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start ``work`` on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call ``function`` soon, unless it has ended; from any thread."""
        loop = self.loop
        if not loop.is_closed():
            with suppress(RuntimeError):  # closed in between
                loop.call_soon_threadsafe(function)

    def stop_soon(self) -> None:
        """End the loop, without waiting for it; from anywhere, a garbage collection too."""
        self.call_soon(self._end)

    def _end(self) -> None:
        if not self._ending:  # a second stop would interrupt the end of the tasks
            self._ending = True
            self.loop.stop()

    def stop(self) -> None:
        """End the loop and wait for its thread. Idempotent."""
        self.stop_soon()
        self.join()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, for at most ``timeout`` seconds."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)


async def run_to_completion(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what ``work`` returns; a cancellation of the caller waits until it has ended.

    anyio's shield does not stop asyncio's own cancellation, so ``work`` runs in a task.
    """
    if _trio_token() is not None:
        with anyio.CancelScope(shield=True):
            return await work()
    has_begun = False

    async def run() -> T:
        nonlocal has_begun
        has_begun = True
        return await work()

    cancellation: asyncio.CancelledError | None = None
    while True:
        task = asyncio.get_running_loop().create_task(run())
        _working.add(task)
        task.add_done_callback(_working.discard)
        while not task.done():
            try:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancellation = error
        # Code that cancels all tasks of the loop may cancel this one before its first step.
        if has_begun or not task.cancelled():
            break
    if cancellation is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # or asyncio logs that it was never retrieved
    raise cancellation


# Keeps a task alive until it has ended, also without a waiter.
_working: Final[set[asyncio.Task[Any]]] = set()


def run_inline(
    work: Coroutine[Any, Any, T], refusal: str = "this coroutine needs an event loop"
) -> T:
    """Run a coroutine that never suspends, without any event loop.

    Args:
        work: the coroutine.
        refusal: the text of the error if it does suspend.

    Raises:
        UsageError: it does suspend.
    """
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise UsageError(refusal)
