"""The asyncio or trio task that an attempt runs in.

Each attempt has a task of its own. On trio each running attempt also has a nursery of its own: an
attempt that leaves a nursery open makes trio cancel the nursery around it with all its tasks.
Opening a nursery and the attempt's cancel scopes takes as long as a short attempt. So they are
reused after their attempt has ended, unless it was cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from inspect import CORO_CREATED, getcoroutinestate
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio

from sitq._logging import Log, fields_of
from sitq.context import CURRENT
from sitq.worker._attempt import EndReason
from sitq.worker._cancelling import AttemptScope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import trio
    from anyio.abc import TaskStatus

    from sitq.worker._attempt import Attempt

__all__ = ["STARTS_EAGERLY", "AttemptTask", "Nurseries"]

_log: Final = Log(__name__)


class _Place(NamedTuple):
    """A nursery with its cancel scopes, for one attempt at a time."""

    scope: AttemptScope
    nursery: trio.Nursery
    is_over: trio.Event


class Nurseries:
    """Starts attempts on trio, each in a nursery that no other attempt uses at the same time.

    A shield keeps the worker's own cancellation from them.
    """

    def __init__(self, grace: float, worker_id: str) -> None:
        import trio

        self._trio: Final = trio
        self._grace: Final = grace
        self._worker_id: Final = worker_id
        self._outer: trio.Nursery | None = None
        self._idle: Final[list[_Place]] = []
        self._closed: Final = trio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Hold the attempts until `close` is called and all of them have ended."""
        task_status.started()
        # A caller that was cancelled meanwhile waits for this task, which ends here, unshielded.
        await self._trio.lowlevel.checkpoint_if_cancelled()
        with self._trio.CancelScope(shield=True):
            async with self._trio.open_nursery() as self._outer:
                await self._closed.wait()

    def close(self) -> None:
        """Let `run` return once the attempts have ended."""
        self._closed.set()
        for place in self._idle:
            place.is_over.set()

    def start(self, attempt: Attempt, run_attempt: Callable[[], Awaitable[None]]) -> None:
        """Start an attempt in a copy of its context, and set its scope.

        `run` has to be running, and ``run_attempt`` raises nothing.
        """
        while self._idle:
            place = self._idle.pop()
            if not place.nursery.cancel_scope.cancel_called:
                self._start_in(place, attempt, run_attempt)
                return
            place.is_over.set()
        if self._outer is not None:
            self._outer.start_soon(self._open, attempt, run_attempt)

    def _start_in(
        self, place: _Place, attempt: Attempt, run_attempt: Callable[[], Awaitable[None]]
    ) -> None:
        attempt.scope = place.scope
        start_soon = place.nursery.start_soon
        attempt.variables.run(start_soon, self._run_attempt, place, attempt, run_attempt)

    async def _open(self, attempt: Attempt, run_attempt: Callable[[], Awaitable[None]]) -> None:
        """Open a place for an attempt and for later ones."""
        scope, is_over = AttemptScope(anyio.CancelScope, self._grace), self._trio.Event()
        try:
            with scope.outer, scope.inner:
                async with self._trio.open_nursery() as nursery:
                    self._start_in(_Place(scope, nursery, is_over), attempt, run_attempt)
                    # A cancelled attempt would end the nursery, which would cancel it again.
                    with self._trio.CancelScope(shield=True):
                        await is_over.wait()
        except ExceptionGroup:
            _log.warning(
                "a task left a nursery open; what runs in it belongs to no task any more",
                extra=fields_of(self._worker_id),
            )

    async def _run_attempt(
        self, place: _Place, attempt: Attempt, run_attempt: Callable[[], Awaitable[None]]
    ) -> None:
        await run_attempt()
        left_open = self._trio.current_effective_deadline() < inf
        if left_open and not place.scope.cancel_called:
            extra = fields_of(self._worker_id, attempt.task)
            _log.warning("task %s left a cancel scope open", attempt.lease.task_id, extra=extra)
        if left_open or place.scope.cancel_called or self._closed.is_set():
            place.is_over.set()
        else:
            self._idle.append(place)


STARTS_EAGERLY: Final = sys.version_info >= (3, 12)
"""True if a new task runs at once, up to its first wait."""

_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if STARTS_EAGERLY else {}


class AttemptTask(asyncio.Task[None]):
    """The asyncio task of one attempt."""

    __slots__ = ("_attempt", "_call")

    def __init__(
        self,
        call: Coroutine[Any, Any, None],
        attempt: Attempt,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._call = call
        self._attempt = attempt
        attempt.host = self
        try:
            super().__init__(
                call,
                loop=loop,
                name=attempt.task.function,
                context=attempt.variables,
                **_EAGERLY,
            )
        except BaseException:
            # A task whose initialization failed crashes the interpreter when it is used.
            attempt.host = None
            raise

    @property
    def has_begun(self) -> bool:
        """Return whether the attempt has made its first step."""
        return STARTS_EAGERLY or getcoroutinestate(self._call) != CORO_CREATED

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the attempt, and note whether other code than its own asks for it.

        Code of the attempt runs in its context, and so do its timers and its child tasks.
        """
        if not self.has_begun:
            # asyncio would end it without a first step, and its end would not be reported.
            self._attempt.end(EndReason.SHUTDOWN)
            return True
        if CURRENT.get(None) is not self._attempt.context:
            self._attempt.cancelled_from_outside = True
        is_cancelled = super().cancel(msg)
        if (scope := self._attempt.scope) is not None:
            scope.note_cancel(msg)
        return is_cancelled
