"""One attempt: arguments rebuilt, the function called, its end turned into an outcome."""

from __future__ import annotations

from contextvars import copy_context
from datetime import timedelta
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread

from sitq.context import CURRENT, TaskContext
from sitq.errors import SitqError, UsageError, ValidationError
from sitq.models import Outcome
from sitq.signing import unseal
from sitq.worker._errors import Raised
from sitq.worker._fallbacks import Fallback
from sitq.worker._isolation import go_on, is_cancelled_by, steps_of, wait_for
from sitq.worker._misses import mismatched
from sitq.worker._outcomes import outcome_of_error, outcome_of_refusal
from sitq.worker._threaded import ThreadedCall
from sitq.worker._types import is_awaitable, part_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from contextvars import Context

    from sitq.models import Lease, ReservedTask
    from sitq.worker._workshop import Workshop

__all__ = ["End", "Execution"]

_NOT_COMMITTED: Final = "the transaction that completed this task was not committed"


class End(Enum):
    """Why an attempt is ended from outside."""

    CANCEL = auto()
    SHUTDOWN = auto()
    OVERDUE = auto()
    """Its lease could not be renewed in time; the store may still accept what it gives."""
    LEASE_LOST = auto()
    """Another attempt is the current one, or the task has ended."""


class Execution:
    """One attempt at a reserved task.

    Args:
        task: what was reserved.
        lease: its lease.
        workshop: what it shares with others.
        since: since when it waits, by the monotonic clock.
    """

    # There is one for each task that was reserved, so it is kept small: the garbage collector
    # looks at all of them again and again.
    __slots__ = (
        "_context",
        "_end",
        "_scope",
        "_thread",
        "_workshop",
        "follows",
        "has_been_met",
        "has_waited",
        "lease",
        "raised",
        "since",
        "task",
    )

    def __init__(self, task: ReservedTask, lease: Lease, workshop: Workshop, since: float) -> None:
        self.task: Final = task
        self.lease: Final = lease
        self.since: Final = since
        self._workshop: Final = workshop
        self._context: TaskContext | None = None
        self._scope: anyio.CancelScope | None = None
        self._end: End | None = None
        # The call of a plain function, until it has ended.
        self._thread: ThreadedCall | None = None
        # What made the attempt fail, for the log.
        self.raised: BaseException | None = None
        # True once it has let others have their turn.
        self.has_waited = False
        # True once code of its own has run in an asyncio task that others have met since.
        self.has_been_met = False
        # True if the asyncio task that runs it has run another one before.
        self.follows = False

    @property
    def context(self) -> TaskContext | None:
        """What the function may know of its attempt; ``None`` before it has begun."""
        return self._context

    @property
    def completed(self) -> bool:
        """True once the task has completed itself in a transaction, committed or not."""
        return self._context is not None and self._context.completed

    @property
    def found_no_thread(self) -> bool:
        """True if a plain function was to be run in a thread, and was not."""
        return self._thread is not None and not self._thread.begun

    def _wait(self) -> None:
        if not self.has_waited:
            self.has_waited = True
            self._workshop.waits()

    def _wait_on_loop(self) -> None:
        self.has_been_met = True
        self._wait()

    def leave(self) -> bool:
        """Tell that nobody waits for the attempt any more; True if a thread still runs it."""
        return self._thread is not None and self._thread.leave()

    def end(self, why: End) -> None:
        """End the attempt soon; in the loop. A plain function is only asked to."""
        if self._context is not None:
            self._context.request_cancel()
        if self._end is None or why is End.LEASE_LOST:
            self._end = why
        # A plain function cannot be stopped: cancelled on request, it is waited for; at a
        # shutdown and after the loss of its lease it is left to itself.
        if self._scope is not None and (why is not End.CANCEL or self._thread is None):
            self._scope.cancel()

    def begin(
        self, scope: anyio.CancelScope
    ) -> Outcome | Coroutine[Any, Any, Outcome | None] | None:
        """Call the function, and return the outcome; ``None`` if the lease is lost.

        Where the function waits for something, the outcome comes from a coroutine, to be awaited
        at once: many tasks never wait, and a coroutine for each would be too much.

        ``scope`` is the innermost one around the call. It is cancelled to end the attempt, and
        may be used for others as long as it is not. Only cancellations are raised; if it was that
        of the scope, `interrupted` has the outcome.
        """
        if self._end is not None:
            return self.interrupted()
        task, workshop = self.task, self._workshop
        function = workshop.function
        try:
            payload = unseal(workshop.serializer, task)
            args, kwargs = function.load_arguments(workshop.serializer, payload)
        except ValidationError as error:
            self.raised = error
            return mismatched(task, error)
        except SitqError as error:
            return self._refused(error)
        except BaseException as error:  # noqa: BLE001 - a validator of the user's model, say
            return self._failed(error)
        context = self._context = TaskContext(task, self.lease, workshop.ties)
        variables = copy_context()
        variables.run(CURRENT.set, context)
        if task.timeout is not None:
            return self._within(task.timeout, context, variables, args, kwargs)
        self._scope = scope
        if not function.is_async:
            return self._concluded(self._call_in_thread(variables, args, kwargs))
        return self._begin_on_loop(variables, args, kwargs)

    def _begin_on_loop(
        self, variables: Context, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome | Coroutine[Any, Any, Outcome | None] | None:
        """Run the function to where it first waits."""
        try:
            steps = steps_of(variables.run(self._workshop.function.func, *args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return self._outcome(Raised(error))
        try:
            wish = variables.run(steps.send, None)
        except StopIteration as stop:
            return self._returned(stop.value)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return self._outcome(_judged(error))
        self._wait_on_loop()
        return self._concluded(self._on_loop(go_on(variables, steps, wish)))

    def interrupted(self) -> Outcome | None:
        """The outcome of an attempt that was ended before it came to its own end."""
        if self._end is End.LEASE_LOST:
            return None
        kind = Outcome.cancelled if self._end is End.CANCEL else Outcome.release
        return self._unless_completed(kind(self.lease))

    def _unless_completed(self, outcome: Outcome | None) -> Outcome | None:
        """Mark what counts only if the attempt has not completed itself in a transaction."""
        if outcome is None or not self.completed:
            return outcome
        return Fallback.of(outcome)

    async def _concluded(self, call: Coroutine[Any, Any, tuple[Any] | Raised]) -> Outcome | None:
        return self._outcome(await call)

    def _outcome(self, ended: tuple[Any] | Raised | None) -> Outcome | None:
        """The outcome of a value in a tuple, of what was raised, or of neither."""
        if isinstance(ended, tuple):
            return self._returned(ended[0])
        if ended is None or self._end is End.LEASE_LOST:
            return self.interrupted()
        return self._unless_completed(self._raised(ended.error))

    async def _within(
        self,
        seconds: float,
        context: TaskContext,
        variables: Context,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome | None:
        """Call the function with a timeout."""
        ended: tuple[Any] | Raised | None = None
        context.deadline = self._workshop.clock.now() + timedelta(seconds=seconds)
        with anyio.move_on_after(seconds) as scope:
            self._scope = scope
            ended = await self._call(variables, args, kwargs)
        if self._end is None and scope.cancel_called:
            context.request_cancel()
            # What it raises on its way out is no reason of its own; what it returns all the same
            # is a result.
            if not isinstance(ended, tuple):
                late = TimeoutError(f"the attempt ran out of its timeout of {seconds:g} s")
                late.__cause__ = ended.error if ended else None
                ended = Raised(late)
        return self._outcome(ended)

    async def _call(
        self, variables: Context, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised:
        """The value in a tuple, or what was raised."""
        function = self._workshop.function
        if not function.is_async:
            return await self._call_in_thread(variables, args, kwargs)
        try:
            awaitable = variables.run(function.func, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return Raised(error)
        return await self._on_loop(wait_for(variables, awaitable, self._wait_on_loop))

    async def _call_in_thread(
        self, variables: Context, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised:
        workshop = self._workshop
        call = self._thread = ThreadedCall(partial(workshop.freed, self))
        # The thread's context is a copy, made by anyio, in which no event loop runs.
        ended = await wait_for(
            variables,
            to_thread.run_sync(
                call.run,
                workshop.function.func,
                args,
                kwargs,
                abandon_on_cancel=True,
                limiter=workshop.limiter,
            ),
            self._wait,
        )
        self._thread = None
        if isinstance(ended, Raised) or not is_awaitable(ended[0]):
            return ended
        return await self._on_loop(wait_for(variables, ended[0], self._wait_on_loop))

    async def _on_loop(self, awaitable: Awaitable[Any]) -> tuple[Any] | Raised:
        try:
            return (await awaitable,)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            return _judged(error)

    def _returned(self, value: object) -> Outcome | None:
        if self._end is End.LEASE_LOST:
            return None
        if self.completed:
            return self._unless_completed(self._raised(UsageError(_NOT_COMMITTED)))
        workshop = self._workshop
        try:
            data = workshop.function.dump_result(workshop.serializer, value)
            return Outcome.success(self.lease, data)
        except BaseException as error:  # noqa: BLE001 - also what the value's own code raises
            return self._refused(error)

    def _raised(self, error: BaseException) -> Outcome | None:
        if self._end is not None:
            # Asked to end, it ended by raising: that is what a plain function can do.
            return self.interrupted()
        is_first = self.task.epoch == self.task.attempt
        if is_first and self.follows and self.has_been_met and is_cancelled_by(error):
            # Perhaps by a timer that a task before it has left behind: it is run once more.
            return Outcome.release(self.lease)
        return self._failed(error)

    def _refused(self, error: BaseException) -> Outcome:
        if issubclass(type(error), SitqError):  # others may quote what was refused
            self.raised = error
        return outcome_of_refusal(self.lease, error)

    def _failed(self, error: BaseException) -> Outcome:
        self.raised = error
        return outcome_of_error(self.task, self.lease, error, self._workshop.retry)


def _judged(error: BaseException) -> Raised:
    """What a task has raised; but a cancellation counts if a scope around us asked for it."""
    if anyio.current_effective_deadline() == float("-inf"):
        cancellation = part_of(error, anyio.get_cancelled_exc_class())
        if cancellation is not None:
            raise cancellation from None
    return Raised(error)
