"""Waiting for results: all callers of one queue share one listener and its queries.

The first caller leads: it listens, and reads the store for all callers. When its call ends, by a
result, a timeout or a cancellation, another caller takes over. No background task runs.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import anyio

from sitq.clock import with_timeout
from sitq.errors import BackendBusyError, BackendFormatError, TaskNotFoundError
from sitq.ids import age_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from sitq.ids import TaskId
    from sitq.models import Result
    from sitq.protocols import Backend, Listener

__all__ = ["ResultWaiters"]

# How many ids go into one query.
_CHUNK: Final = 500
# The longest time between two queries, in case the store's listener misses a change; seconds.
_LOOK_EVERY: Final = 1.0
# A younger task is not queried before the store announces a change: a query right after the enqueue
# would slow down the worker that runs it; seconds.
_MIN_TASK_AGE: Final = 0.003
# Pauses before a busy store is asked again: the first, and the longest; seconds.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
# How long one query may take after the caller's timeout; seconds.
_LAST_LOOK: Final = 5.0


class _Waiter:
    """One call that waits for one result."""

    __slots__ = ("answered", "done", "error", "news", "result", "task_id", "trace")

    def __init__(self, task_id: TaskId[Any]) -> None:
        self.task_id: Final = task_id
        self.news = anyio.Event()
        self.answered = False  # whether the store has been asked successfully at least once
        self.done = False
        self.result: Result[Any] | None = None
        self.error: Exception | None = None
        self.trace: TracebackType | None = None

    def finish(self, result: Result[Any] | None, error: Exception | None = None) -> None:
        """End the call: it returns the result, or raises the error."""
        if not self.done:
            self.done = True
            self.result = result
            self.fault(error)
            self.news.set()

    def fault(self, error: Exception | None) -> None:
        """Set the error that the call raises if it ends now."""
        self.error = error
        self.trace = None if error is None else error.__traceback__

    def outcome(self) -> Result[Any] | None:
        """Return the result for the call, or raise its error."""
        if self.error is not None:
            # Several calls may raise the same error: each starts from its original traceback.
            raise self.error.with_traceback(self.trace)
        return self.result


class ResultWaiters:
    """All calls of one queue, in one event loop, that wait for results."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        self._clock: Final = backend.clock
        self._waiting: Final[dict[TaskId[Any], set[_Waiter]]] = {}
        self._unseen: Final[dict[TaskId[Any], None]] = {}
        self._leader: _Waiter | None = None
        self._leading: anyio.CancelScope | None = None
        self._busy_for = 0  # how many queries in a row found the store busy
        self._pause: anyio.CancelScope | None = None
        self._left = anyio.Event()

    async def look(self, task_id: TaskId[Any]) -> Result[Any] | None:
        """Look once, without waiting.

        Raises:
            TaskNotFoundError: the id is unknown.
            BackendError: the store could not be asked, or does not answer.
        """
        look = partial(self._backend.get_results, (task_id,))
        results = await with_timeout(self._clock, _LAST_LOOK, look)
        if results is None:
            message = f"task {task_id}: the store has not answered for {_LAST_LOOK:g} seconds"
            raise BackendBusyError(message)
        if task_id not in results:
            raise _unknown(task_id)
        return results[task_id]

    async def wait(self, task_id: TaskId[Any], timeout: float | None) -> Result[Any] | None:  # noqa: ASYNC109 - counted by the backend's clock
        """Wait until a task is final; ``None`` if it was not within ``timeout`` seconds.

        Raises:
            TaskNotFoundError: the id is unknown, from the start or since the task was pruned.
            BackendError: the store could not be asked, or does not answer.
        """
        waiter = _Waiter(task_id)
        self._waiting.setdefault(task_id, set()).add(waiter)
        self._unseen[task_id] = None
        if self._pause is not None:
            self._pause.cancel()
        try:
            if timeout is None:
                await self._take_part(waiter)
            else:
                await with_timeout(self._clock, timeout, partial(self._take_part, waiter))
        finally:
            self._leave(waiter)
        if not (waiter.done or waiter.answered or waiter.error):
            return await self.look(task_id)  # the leader has not queried in time
        return waiter.outcome()

    async def stop(self, error: Exception) -> None:
        """Have all calls raise ``error``; return once none of them uses the backend any more."""
        self._finish_all(error)
        while self._leader is not None:
            if self._leading is not None:
                self._leading.cancel()
            await self._left.wait()

    async def _take_part(self, waiter: _Waiter) -> None:
        while not waiter.done:
            if self._leader is None:
                self._leader = waiter
            if self._leader is waiter:
                await self._lead(waiter)
            else:
                await waiter.news.wait()
                waiter.news = anyio.Event()

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a call; if it was the leader, make another one the leader and wake it."""
        others = self._waiting.get(waiter.task_id)
        if others is not None:
            others.discard(waiter)
            if not others:
                del self._waiting[waiter.task_id]
                self._unseen.pop(waiter.task_id, None)
        if self._leader is waiter:
            self._leader = next(self._unfinished(), None)
            if self._leader is not None:
                self._leader.news.set()
            self._left.set()
            self._left = anyio.Event()

    def _unfinished(self) -> Iterator[_Waiter]:
        """Return the calls that still wait."""
        return (
            waiter for waiters in self._waiting.values() for waiter in waiters if not waiter.done
        )

    async def _lead(self, leader: _Waiter) -> None:
        """Listen and query for all calls, until the leader's own call is done."""
        self._busy_for = 0
        try:
            with anyio.CancelScope() as self._leading:
                if not leader.answered:
                    # Its result may be there: a query costs less than a listener.
                    await self._query(self._old_enough((leader.task_id,)))
                if not leader.done:
                    async with self._backend.listen("results") as listener:
                        await self._serve(leader, listener)
        except Exception as error:  # noqa: BLE001 - it is raised by each of the calls
            self._finish_all(error)
        finally:
            self._leading = None

    async def _serve(self, leader: _Waiter, listener: Listener) -> None:
        wanted = self._old_enough(self._waiting)  # again: the change may have come in between
        while True:
            if not await self._query(wanted):
                wanted = list(self._waiting)
            elif leader.done:
                return
            else:
                wanted = self._old_enough(self._unseen) or await self._next_wanted(listener)

    async def _query(self, task_ids: Iterable[TaskId[Any]]) -> bool:
        """Query tasks; if the store is busy, pause and return False.

        Calls that end during the pause raise the error.
        """
        try:
            await self._look_for(task_ids)
        except BackendBusyError as error:
            for waiter in self._unfinished():
                if not waiter.answered:
                    waiter.fault(error)
            pause = min(_FIRST_PAUSE * 2.0 ** min(self._busy_for, 16), _LONGEST_PAUSE)
            self._busy_for += 1
            await self._clock.sleep(pause)
            return False
        self._busy_for = 0
        return True

    def _old_enough(self, task_ids: Iterable[TaskId[Any]]) -> list[TaskId[Any]]:
        """Return the tasks that are old enough to query; see `_MIN_TASK_AGE`."""
        return [task_id for task_id in task_ids if not 0 <= age_of(task_id) < _MIN_TASK_AGE]

    async def _next_wanted(self, listener: Listener) -> list[TaskId[Any]]:
        """Wait for a change, a new call or the next poll; return the tasks to query."""
        changed = False

        async def listen() -> None:
            nonlocal changed
            await listener.wait()
            changed = True  # also if the scope is cancelled at the same time

        youth = [_MIN_TASK_AGE - age_of(task_id) for task_id in self._unseen]
        try:
            with anyio.CancelScope() as self._pause:
                if youth:
                    with anyio.move_on_after(min(youth)):
                        await listen()
                else:
                    await with_timeout(self._clock, _LOOK_EVERY, listen)
                    changed = True
        finally:
            self._pause = None
        return list(self._waiting) if changed else []

    async def _look_for(self, task_ids: Iterable[TaskId[Any]]) -> None:
        remaining = iter(task_ids)
        while chunk := tuple(islice(remaining, _CHUNK)):
            try:
                self._answer(chunk, await self._backend.get_results(chunk))
            except BackendFormatError as error:
                # A row that cannot be read fails only the calls that asked for it.
                if len(chunk) == 1:
                    self._finish_each(chunk[0], error)
                else:
                    for task_id in chunk:
                        await self._look_for((task_id,))

    def _answer(
        self, asked: tuple[TaskId[Any], ...], results: Mapping[TaskId[Any], Result[Any] | None]
    ) -> None:
        for task_id in asked:
            self._unseen.pop(task_id, None)
            if task_id not in results:
                self._finish_each(task_id, _unknown(task_id))
                continue
            result = results[task_id]
            for waiter in self._waiting.get(task_id, ()):
                if result is not None:
                    waiter.finish(result)
                else:
                    waiter.answered = True
                    waiter.fault(None)

    def _finish_each(self, task_id: TaskId[Any], error: Exception) -> None:
        self._unseen.pop(task_id, None)
        for waiter in self._waiting.get(task_id, ()):
            waiter.finish(None, error)

    def _finish_all(self, error: Exception) -> None:
        for waiter in list(self._unfinished()):
            waiter.finish(None, error)


def _unknown(task_id: TaskId[Any]) -> TaskNotFoundError:
    return TaskNotFoundError(f"no task {task_id}: it was never stored here, or has been pruned")
