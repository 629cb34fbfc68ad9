"""One attempt: arguments rebuilt, the function called, its end turned into an outcome."""

from __future__ import annotations

import random
from datetime import timedelta
from enum import Enum, auto
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread

from sitq.context import CURRENT, TaskContext
from sitq.errors import SitqError, UsageError
from sitq.models import Outcome, RetryPolicy
from sitq.retry import Retry, backoff, wants_retry
from sitq.signing import unseal
from sitq.worker._errors import error_text, traceback_text
from sitq.worker._fallbacks import Fallback
from sitq.worker._isolation import Isolation, is_cancelled_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq.functions import TaskFunction
    from sitq.models import Lease, Progress, ReservedTask
    from sitq.protocols import Backend, Serializer

__all__ = ["End", "Execution"]

_NOT_COMMITTED: Final = "the transaction that completed this task was not committed"


class End(Enum):
    """Why an attempt is ended from outside."""

    CANCEL = auto()
    SHUTDOWN = auto()
    LEASE_LOST = auto()


class _Raised:
    """An exception of the task's, carried past code that is not the task's."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        trace = error.__traceback__
        # The first frame is the one that caught it.
        self.error: Final = error.with_traceback(trace.tb_next if trace else None)


class Execution:
    """One attempt at a reserved task.

    Args:
        task: what was reserved.
        function: the function to call.
        serializer: rebuilds the arguments.
        retry: the policy of tasks that have none of their own.
        backend: for its clock, and for a task that completes itself.
        limiter: the worker's threads.
        note: takes the progress that the task tells.
        freed: called, in a thread, when a plain function that was left to itself has ended.
        waits: called in the loop when the attempt first lets others have their turn.
    """

    __slots__ = (
        "_clock",
        "_end",
        "_freed",
        "_function",
        "_in_thread",
        "_isolation",
        "_left",
        "_limiter",
        "_retry",
        "_scope",
        "_serializer",
        "_task",
        "_thread_begun",
        "_thread_done",
        "_waits",
        "context",
        "follows",
        "has_waited",
        "lease",
    )

    def __init__(
        self,
        task: ReservedTask,
        function: TaskFunction[Any],
        serializer: Serializer,
        retry: RetryPolicy | None,
        backend: Backend,
        limiter: anyio.CapacityLimiter,
        note: Callable[[Lease, Progress], object],
        freed: Callable[[Execution], object],
        waits: Callable[[], object],
    ) -> None:
        self.lease: Final = task.lease
        self._task = task
        self._function = function
        self._serializer = serializer
        self._retry = task.retry or retry
        self._limiter = limiter
        self._freed = freed
        self._scope: anyio.CancelScope | None = None
        self._end: End | None = None
        self._clock = backend.clock
        encode = partial(function.dump_result, serializer)
        self.context: Final = TaskContext(task, None, note, backend, encode)
        self._isolation = Isolation(self._wait)
        self._waits = waits
        # True once it has let others have their turn.
        self.has_waited = False
        # True if the asyncio task that runs it has run another one before.
        self.follows = False
        self._in_thread = False
        self._thread_begun = False
        self._thread_done = False
        self._left = False

    @property
    def suspended(self) -> bool:
        """True if the function has given the loop to others at least once."""
        return self._isolation.suspended

    @property
    def found_no_thread(self) -> bool:
        """True if a plain function was to be run in a thread, and was not."""
        return self._in_thread and not self._thread_begun

    def _wait(self) -> None:
        if not self.has_waited:
            self.has_waited = True
            self._waits()

    def leave(self) -> bool:
        """Tell that nobody waits for the attempt any more; True if a thread still runs it."""
        self._left = True
        return self._in_thread and self._thread_begun and not self._thread_done

    def end(self, why: End) -> None:
        """End the attempt soon; in the loop. A plain function is only asked to."""
        self.context.request_cancel()
        if self._end is None or why is End.LEASE_LOST:
            self._end = why
        # A plain function cannot be stopped: cancelled on request, it is waited for; at a
        # shutdown and after the loss of its lease it is left to itself.
        if self._scope is not None and (why is not End.CANCEL or not self._in_thread):
            self._scope.cancel()

    async def run(self, scope: anyio.CancelScope) -> Outcome | None:
        """Call the function; return the outcome, ``None`` if the lease is lost.

        ``scope`` is the innermost one around the call. It is cancelled to end the attempt, and
        may be used for others as long as it is not. Raises only cancellations; if it was that of
        the scope, `interrupted` has the outcome.
        """
        if self._end is not None:
            return self.interrupted()
        try:
            payload = unseal(self._serializer, self._task)
            arguments = self._function.load_arguments(self._serializer, payload)
        except SitqError as error:
            return Outcome.failure(self.lease, error_text(error))
        except BaseException as error:  # noqa: BLE001 - a validator of the user's model, say
            return self._failed(error)
        self._isolation.call(CURRENT.set, self.context)
        timeout = self._task.timeout
        if timeout is None:
            self._scope = scope
            return self._outcome(await self._invoke(*arguments))
        return self._outcome(await self._invoke_within(timeout, *arguments))

    def interrupted(self) -> Outcome | None:
        """The outcome of an attempt that was ended before it came to its own end."""
        if self._end is End.LEASE_LOST:
            return None
        kind = Outcome.cancelled if self._end is End.CANCEL else Outcome.release
        return self._unless_completed(kind(self.lease))

    def _unless_completed(self, outcome: Outcome | None) -> Outcome | None:
        """Mark what counts only if the attempt has not completed itself in a transaction."""
        if outcome is None or not self.context.completed:
            return outcome
        return Fallback.of(outcome)

    def _outcome(self, ended: tuple[Any] | _Raised | None) -> Outcome | None:
        if ended is None or self._end is End.LEASE_LOST:
            return self.interrupted()
        if self.context.completed and isinstance(ended, tuple):
            ended = _Raised(UsageError(_NOT_COMMITTED))
        if isinstance(ended, _Raised):
            return self._unless_completed(self._raised(ended.error))
        return self._returned(ended[0])

    async def _invoke_within(
        self, seconds: float, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | _Raised | None:
        """The value in a tuple, what was raised, or ``None`` if the attempt was ended."""
        ended: tuple[Any] | _Raised | None = None
        self.context.deadline = self._clock.now() + timedelta(seconds=seconds)
        with anyio.move_on_after(seconds) as scope:
            self._scope = scope
            ended = await self._invoke(args, kwargs)
        if self._end is not None or not scope.cancel_called:
            return ended
        self.context.request_cancel()
        # What it raises on its way out is no reason of its own; what it returns all the same is
        # a result.
        if ended is None or isinstance(ended, _Raised):
            late = TimeoutError(f"the attempt ran out of its timeout of {seconds:g} s")
            late.__cause__ = ended.error if ended else None
            return _Raised(late)
        return ended

    async def _invoke(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | _Raised:
        if not self._function.is_async:
            self._in_thread = True
            # The thread's context is a copy, made by anyio, in which no event loop runs.
            ended = await self._isolation.wait_for(
                to_thread.run_sync(
                    self._run_in_thread,
                    args,
                    kwargs,
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
            )
            self._in_thread = False
            if isinstance(ended, _Raised) or not isawaitable(ended[0]):
                return ended
            return await self._on_loop(ended[0])
        try:
            awaitable = self._isolation.call(self._function.func, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return _Raised(error)
        return await self._on_loop(awaitable)

    async def _on_loop(self, awaitable: Awaitable[Any]) -> tuple[Any] | _Raised:
        try:
            return (await self._isolation.wait_for(awaitable),)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            # A cancellation counts only if a scope around us asked for it.
            if anyio.current_effective_deadline() == float("-inf"):
                cancellation = _cancellation_in(error)
                if cancellation is not None:
                    raise cancellation from None
            return _Raised(error)

    def _run_in_thread(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | _Raised:
        self._thread_begun = True
        try:
            return (self._function.func(*args, **kwargs),)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return _Raised(error)
        finally:
            self._thread_done = True
            if self._left:
                self._freed(self)

    def _returned(self, value: object) -> Outcome:
        try:
            return Outcome.success(self.lease, self._function.dump_result(self._serializer, value))
        except BaseException as error:  # noqa: BLE001 - also what the value's own code raises
            return Outcome.failure(self.lease, error_text(error))

    def _raised(self, error: BaseException) -> Outcome | None:
        if self._end is not None:
            # Asked to end, it ended by raising: that is what a plain function can do.
            return self.interrupted()
        if self.follows and self._task.epoch == self._task.attempt and is_cancelled_by(error):
            # Perhaps by a timer that a task before it has left behind: it is run once more.
            return Outcome.release(self.lease)
        return self._failed(error)

    def _failed(self, error: BaseException) -> Outcome:
        text, trace = error_text(error), traceback_text(error)
        policy, attempt = self._retry, self._task.attempt
        if isinstance(error, Retry):
            policy = policy or RetryPolicy()
        elif policy is None or not wants_retry(policy, attempt, error):
            return Outcome.failure(self.lease, text, trace)
        if attempt >= policy.max_attempts:
            return Outcome.failure(self.lease, text, trace)
        delay = error.delay if isinstance(error, Retry) else None
        if delay is None:
            delay = backoff(policy, attempt, random.random())
        return Outcome.retry(self.lease, delay, text, trace)


def _cancellation_in(error: BaseException) -> BaseException | None:
    """The cancellation that an error is, or the part of a group that is one."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, cancelled):
        return error
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[0]
    return None
