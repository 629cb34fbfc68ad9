"""Run a driver that supports only asyncio, for callers under asyncio or trio.

Under asyncio the driver runs in the loop of its callers. Under trio it runs in an asyncio loop in a
thread of its own. Its work runs in tasks that a cancellation of the caller does not reach.
"""

from __future__ import annotations

import asyncio
import atexit
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from sitq._logging import Log
from sitq._loops import LoopThread, no_op
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sitq._loops import LoopRef

__all__ = ["DriverLoop", "start_driver_thread", "stop_driver_thread", "when_cancelled"]

_log: Final = Log(__name__)

T = TypeVar("T")

_CLOSED: Final = "the backend was closed during this call"

# A loop keeps its tasks by weak references only. What has been forgotten must end, not vanish.
_RUNNING: Final[set[asyncio.Task[Any]]] = set()
# What waits for the end of a loop; these do not wait for each other.
_GUARDS: Final[set[asyncio.Task[Any]]] = set()


def start_driver_thread(name: str) -> LoopThread:
    """Start a thread with an asyncio loop; it ends with the process at the latest."""
    thread = LoopThread(name)
    thread.start()
    atexit.register(thread.stop)
    return thread


def stop_driver_thread_soon(thread: LoopThread) -> None:
    """Start to end a driver's loop, without waiting for it."""
    atexit.unregister(thread.stop)
    thread.stop_soon()


def stop_driver_thread(thread: LoopThread) -> None:
    """End a driver's loop, and wait for it."""
    atexit.unregister(thread.stop)
    thread.stop()


async def when_cancelled(function: Callable[[], object]) -> None:
    """Call a function when this is cancelled, as everything is when its loop ends."""
    task = asyncio.current_task()
    if task is not None:
        _RUNNING.add(task)
        task.add_done_callback(_RUNNING.discard)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        function()


class DriverLoop:
    """The asyncio loop that runs a driver.

    Args:
        loop: the loop of its callers.
        name: of the thread, where there has to be one.
    """

    def __init__(self, loop: LoopRef, name: str) -> None:
        self._callers: Final = loop
        self._thread: LoopThread | None = None
        self._forget: Callable[[], object] = no_op
        if loop.asyncio is not None:
            self._loop = loop.asyncio
        else:
            self._thread = start_driver_thread(name)
            self._forget = loop.at_end(partial(stop_driver_thread_soon, self._thread))
            self._loop = self._thread.loop
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self._is_ending = self._thread is not None

    @property
    def is_ending(self) -> bool:
        """Return whether a cancellation of a task in this loop is to be obeyed.

        At the end of the callers' loop, asyncio cancels every task, also those that callers wait
        for while they clean up; such a cancellation is ignored.
        """
        return self._is_ending

    def start(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        not_begun: Callable[[], object] = no_op,
    ) -> None:
        """Run ``work``, which raises nothing, as a task; from the callers' loop or from here.

        Args:
            work: what to run.
            not_begun: called instead if the task is cancelled before its first step, as at the
                end of its loop.
        """
        has_begun = False

        async def run() -> None:
            nonlocal has_begun
            has_begun = True
            await work()

        def ended() -> None:
            if not has_begun:
                not_begun()

        if self._thread is None or _is_running(self._loop):
            self._begin(run, ended)
        else:
            with suppress(RuntimeError):  # the thread has ended, and so have the callers
                self._loop.call_soon_threadsafe(self._begin, run, ended)

    def _begin(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        ended: Callable[[], object] | None = None,
    ) -> asyncio.Task[None]:
        """Run ``work`` as a task, and call ``ended`` then, also if it ends without a step."""
        task = self._loop.create_task(work())
        if ended is not None:
            task.add_done_callback(lambda _: ended())
        self._tasks.add(task)
        _RUNNING.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        _RUNNING.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a unit of work has failed: %s", type(error).__name__, error=error)

    async def run(self, work: Callable[..., Awaitable[T]], *parameters: Any) -> T:
        """Do some work to its end, whatever becomes of the caller, and return what it returned."""
        if self._thread is None:
            future = Future[T]()
            await asyncio.shield(self._begin(partial(_fulfil, future, work, parameters)))
        else:
            done = anyio.Event()
            try:
                future = self.submit(work, *parameters)
            except RuntimeError:
                raise UsageError(_CLOSED) from None
            future.add_done_callback(lambda _: self._callers.call_soon(done.set))
            await done.wait()
        return future.result()

    def submit(self, work: Callable[..., Awaitable[T]], *parameters: Any) -> Future[T]:
        """Do some work; from any other thread, which may block until it is done.

        Raises:
            RuntimeError: the loop has ended.
        """
        future = Future[T]()

        def end() -> None:
            if not future.done():  # cancelled before the first step
                future.set_exception(UsageError(_CLOSED))

        unit = partial(_fulfil, future, work, parameters)
        self._loop.call_soon_threadsafe(self._begin, unit, end)
        return future

    def tell(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the loop of the callers; from here."""
        if self._thread is None:
            function()
        else:
            self._callers.call_soon(function)

    async def rest(self, seconds: float, keep: set[asyncio.Task[Any]]) -> bool:
        """Wait until nothing runs but the caller and ``keep``; return False if it takes longer."""
        give_up = self._loop.time() + seconds
        while others := self._others(keep):
            rest = give_up - self._loop.time()
            if rest <= 0:
                return False
            await asyncio.wait(others, timeout=rest)
        return True

    async def when_ended(self, function: Callable[[], object], seconds: float) -> None:
        """Call a function when this is cancelled, as everything is when its loop ends; from here.

        If it is the callers' loop that ends, they have so many seconds to clean up before.
        """
        task = asyncio.current_task()
        if task is not None:
            _GUARDS.add(task)
            task.add_done_callback(_GUARDS.discard)
        try:
            await self._loop.create_future()
        except asyncio.CancelledError:
            give_up = self._loop.time() + seconds
            while not self._is_ending and (others := self._cleaning_up()):
                rest = give_up - self._loop.time()
                if rest <= 0:
                    break
                await asyncio.wait(others, timeout=rest)
            raise
        finally:
            function()

    def _cleaning_up(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that were cancelled and go on for now, and what they have asked for."""
        return {
            task
            for task in asyncio.all_tasks()
            if task not in _GUARDS and (task.cancelling() or task in self._tasks)
        }

    def end_soon(self) -> None:
        """Stop ignoring the cancellations of this loop's tasks."""
        self._is_ending = True

    async def cut(self, keep: set[asyncio.Task[Any]]) -> None:
        """Cancel what runs but the caller and ``keep``; from here."""
        self._is_ending = True
        for task in self._others(keep):
            task.cancel()
            await asyncio.wait({task})

    def _others(self, keep: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
        return self._tasks - keep - {asyncio.current_task()}

    async def end(self) -> None:
        """End the thread, if there is one; from the callers' loop, once all work has ended."""
        if self._thread is not None:
            self._forget()
            await anyio.to_thread.run_sync(stop_driver_thread, self._thread)

    def abandon(self) -> None:
        """Schedule the cancellation of all tasks, whose callers are gone; from any thread."""
        self._is_ending = True
        if self._thread is not None:
            self._forget()
            stop_driver_thread_soon(self._thread)
            return
        with suppress(RuntimeError):  # the loop has ended, and all that ran with it
            self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()


async def _fulfil(
    future: Future[T], work: Callable[..., Awaitable[T]], parameters: tuple[Any, ...]
) -> None:
    try:
        future.set_result(await work(*parameters))
    except asyncio.CancelledError:
        future.set_exception(UsageError(_CLOSED))
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        future.set_exception(error)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
