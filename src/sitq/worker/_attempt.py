"""One attempt: rebuild the arguments, call the function, and make an outcome of its end."""

from __future__ import annotations

import os
from contextvars import copy_context
from datetime import timedelta
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread

from sitq._logging import Log, fields_of
from sitq._loops import no_op
from sitq._signal_exits import find_signal_exit
from sitq.context import CURRENT, AttemptState, TaskContext
from sitq.errors import SitqError, UsageError, ValidationError
from sitq.models import Outcome
from sitq.payload.signing import unseal
from sitq.worker._calls import Raised, ThreadedCall, end_child, is_awaitable
from sitq.worker._cancelling import AttemptScope
from sitq.worker._outcome_writer import UncommittedOutcome
from sitq.worker._outcomes import error_text, outcome_of_error, outcome_of_mismatch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

    from sitq.models import Lease, ReservedTask
    from sitq.payload.functions import TaskFunction
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["Attempt", "EndReason", "NoThreadError"]


_log: Final = Log(__name__)

# An attempt whose asyncio task was cancelled by other code is released. While the worker goes on,
# that holds until the task was released or lost so often.
_MOST_GIVEN_BACK: Final = 10
_NOT_COMMITTED: Final = "the transaction that completed this task was not committed"


class EndReason(Enum):
    """Why an attempt is ended from outside."""

    CANCEL = auto()
    SHUTDOWN = auto()
    OVERDUE = auto()
    """Its lease could not be renewed in time; the store may still accept what it gives."""
    LEASE_LOST = auto()
    """Another attempt is the current one, or the task has ended."""


class NoThreadError(Exception):
    """No thread could be started for a plain function."""


class Attempt:
    """One attempt at a reserved task, which waits for a place ``since`` a monotonic time."""

    # There is one for each reserved task, and the garbage collector visits each of them. So it is
    # kept small.
    __slots__ = (
        "_end",
        "_function",
        "_state",
        "_thread",
        "_timed_out",
        "_worker",
        "cancelled_from_outside",
        "context",
        "host",
        "lease",
        "raised",
        "scope",
        "since",
        "task",
        "variables",
    )

    def __init__(
        self,
        task: ReservedTask,
        lease: Lease,
        function: TaskFunction[Any],
        worker: WorkerRuntime,
        since: float,
    ) -> None:
        self.task: Final = task
        self.lease: Final = lease
        self.since: Final = since
        self._function: Final = function
        self._worker: Final = worker
        # The function's `current_task`; `None` before the attempt has begun.
        self.context: TaskContext | None = None
        self._state: Final = AttemptState()
        # The context variables that the function sees; set once it has begun.
        self.variables: Context
        # The scope that cancels it, while it runs.
        self.scope: AttemptScope | None = None
        self._timed_out = False
        self._end: EndReason | None = None
        # The call of a plain function, until it has ended.
        self._thread: ThreadedCall | None = None
        # The error of a failed attempt, for the log.
        self.raised: BaseException | None = None
        # True once other code than its own has cancelled its asyncio task.
        self.cancelled_from_outside = False
        # Its asyncio task. The loop itself holds only a weak reference.
        self.host: asyncio.Task[None] | None = None

    @property
    def completed(self) -> bool:
        """Return whether the task has completed itself in a transaction, committed or not."""
        return self._state.completed

    @property
    def is_hosted(self) -> bool:
        """Return whether an asyncio task runs the attempt."""
        return self.host is not None and not self.host.done()

    def leave(self, freed: Callable[[], object]) -> bool:
        """Abandon the call of a plain function; see `ThreadedCall.leave`."""
        return self._thread is not None and self._thread.leave(freed)

    def end(self, why: EndReason) -> None:
        """End the attempt soon; called in the loop. A plain function is only asked to end."""
        self._state.cancel_requested = True
        if self._end is None or why is EndReason.LEASE_LOST:
            self._end = why
        # A plain function cannot be stopped. After a cancellation it is waited for; at a
        # shutdown and after the loss of its lease it is abandoned.
        if self.scope is not None and (why is not EndReason.CANCEL or self._thread is None):
            self._cancel(self.scope, has_grace=why in {EndReason.CANCEL, EndReason.SHUTDOWN})

    def _cancel(self, scope: AttemptScope, *, has_grace: bool) -> None:
        # An abandoned plain function needs no grace. An extension around it does.
        if has_grace and (self._thread is None or self._worker.hooks.around_attempt):
            scope.cancel()
        else:
            scope.cancel_now()

    def _time_out(self) -> None:
        """End the attempt at its timeout; called in the loop."""
        if self.scope is None:
            return
        if self._end is None:
            self._timed_out = True
            self._state.cancel_requested = True
        elif self._thread is None:
            return  # it is cancelled already
        # A plain function that was asked to end and has not is abandoned.
        self._cancel(self.scope, has_grace=True)

    def begin(self) -> Coroutine[Any, Any, Outcome | None] | Outcome | None:
        """Rebuild the arguments and return the coroutine that makes the call.

        The coroutine runs in a task of its own, in the context `variables`.

        Returns:
            The coroutine; or the outcome, if the call cannot be made; ``None`` if the lease is
            lost.
        """
        if self._end is not None:
            return self.interrupted()
        self.context = TaskContext(self.task, self.lease, self._function, self._worker, self._state)
        self.variables = copy_context()
        self.variables.run(CURRENT.set, self.context)
        return self.variables.run(self._load_and_run)

    def _load_and_run(self) -> Coroutine[Any, Any, Outcome | None] | Outcome | None:
        task, serializer = self.task, self._worker.serializer
        try:
            payload = unseal(serializer, task)
            args, kwargs = self._function.load_arguments(serializer, payload)
        except ValidationError as error:
            self.raised = error
            return outcome_of_mismatch(task, error, self._worker.worker_id)
        except SitqError as error:
            return self._refused(error)
        except BaseException as error:  # noqa: BLE001 - a validator of the user's model, say
            return self._failed(error)
        if self._function.resources:
            try:
                for name, factory in self._function.resources.items():
                    kwargs[name] = self._worker.shared(factory)
            except UsageError as error:
                return self._failed(error)
        return self._run(args, kwargs)

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome | None:
        """Call the function within a scope that ends the attempt, and return the outcome."""
        worker = self._worker
        seconds = self.task.timeout
        ended: tuple[Any] | Raised | None = None
        revoke_timeout: Callable[[], object] = no_op
        if seconds is not None:
            self._state.deadline = worker.clock.now() + timedelta(seconds=seconds)
            revoke_timeout = worker.loop.call_later(seconds, self._time_out)
        try:
            if self.scope is not None:  # on trio, its nursery is in there
                ended = await self._call(args, kwargs)
            else:
                scope = AttemptScope(worker.scope, worker.grace, self.host)
                self.scope = scope
                with scope.outer, scope.inner:
                    ended = await self._call(args, kwargs)
        except RuntimeError:
            if ended is None and self._end is None and not self._timed_out:
                raise  # of sitq's own: a released task would be retried for ever
            # anyio raises this at the end of a scope if an inner one was left open.
            extra = fields_of(worker.worker_id, self.task)
            _log.warning("task %s left a cancel scope open", self.lease.task_id, extra=extra)
        finally:
            revoke_timeout()
            self.scope = None
        # An exception after the timeout is a consequence of it. A value that is returned all the
        # same is the result.
        if self._timed_out and self._end is None and not isinstance(ended, tuple):
            late = TimeoutError(f"the attempt ran out of its timeout of {seconds:g} s")
            late.__cause__ = ended.error if ended else None
            ended = Raised(late)
        return self._outcome(ended)

    async def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised | None:
        """Return the value in a tuple, or the exception; ``None`` if it has to end already."""
        if self._end is not None:
            return None
        function = self._function
        process = os.getpid()
        try:
            if self._worker.hooks.around_attempt:
                ended: tuple[Any] | Raised = (await self._watched(self._around(args, kwargs)),)
            elif function.is_async:
                ended = (await self._watched(function.func(*args, **kwargs)),)
            else:
                ended = await self._call_in_thread(args, kwargs)
                if isinstance(ended, tuple) and is_awaitable(ended[0]):
                    ended = (await self._watched(ended[0]),)
        except NoThreadError:
            raise
        except BaseException as error:  # noqa: BLE001 - it is the task's own error
            if os.getpid() != process:
                end_child(error)
            self._note_exit(error)
            return Raised(error)
        if os.getpid() != process:
            end_child(None)
        return ended

    def _around(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[object]:
        """Return what runs the function through the extensions around it."""
        from sitq.worker._around_attempt import around

        call = partial(self._value, args, kwargs)
        return around(self._worker.hooks.around_attempt, self._begun_context, call)

    async def _value(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value of the function, or raise its error."""
        function = self._function
        if function.is_async:
            return await function.func(*args, **kwargs)
        ended = await self._call_in_thread(args, kwargs)
        if not isinstance(ended, tuple):
            raise ended.error
        return await ended[0] if is_awaitable(ended[0]) else ended[0]

    @property
    def _begun_context(self) -> TaskContext:
        if self.context is None:
            raise RuntimeError("the attempt has not begun")
        return self.context

    def _watched(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        if self.host is not None or self.scope is None:
            return awaitable
        return self.scope.watched(awaitable)

    async def _call_in_thread(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised:
        function = self._function.func
        if self._worker.hooks.around_attempt_sync:
            from sitq.worker._around_attempt import around_in_thread

            extensions = self._worker.hooks.around_attempt_sync
            function = around_in_thread(extensions, self._begun_context, function)
        call = self._thread = ThreadedCall()
        try:
            # The thread's context is a copy, made by anyio, in which no event loop runs.
            ended = await to_thread.run_sync(
                call.run,
                function,
                args,
                kwargs,
                abandon_on_cancel=True,
                limiter=self._worker.limiter,
            )
        except Exception as error:
            raise NoThreadError from error  # the call itself raises nothing
        self._thread = None
        return ended

    def interrupted(self) -> Outcome | None:
        """Return the outcome of an attempt that was ended from outside."""
        if self._end is EndReason.LEASE_LOST:
            return None
        kind = Outcome.cancelled if self._end is EndReason.CANCEL else Outcome.release
        return self._unless_completed(kind(self.lease))

    def _unless_completed(self, outcome: Outcome | None) -> Outcome | None:
        """Mark an outcome that counts only if the task's own transaction was not committed."""
        if outcome is None or not self.completed:
            return outcome
        return UncommittedOutcome.of(outcome)

    def _outcome(self, ended: tuple[Any] | Raised | None) -> Outcome | None:
        """Return the outcome of a value in a tuple, of an exception, or of neither."""
        if isinstance(ended, tuple):
            return self._returned(ended[0])
        if ended is None or self._end is EndReason.LEASE_LOST:
            return self.interrupted()
        return self._unless_completed(self._raised(ended.error))

    def _returned(self, value: object) -> Outcome | None:
        if self._end is EndReason.LEASE_LOST:
            return None
        if self.completed:
            return self._unless_completed(self._raised(UsageError(_NOT_COMMITTED)))
        try:
            data = self._function.dump_result(self._worker.serializer, value)
            return Outcome.success(self.lease, data)
        except BaseException as error:  # noqa: BLE001 - the value's own code may raise anything
            return self._refused(error)

    def _note_exit(self, error: BaseException) -> bool:
        """End the worker if a signal handler has raised the error; return whether one has."""
        leaving = find_signal_exit(error)
        if leaving is None:
            return False
        if self._end is None:
            self._end = EndReason.SHUTDOWN
        self._worker.leave(leaving)
        return True

    def _is_given_back(self) -> bool:
        """Return whether the attempt is released because other code cancelled its asyncio task.

        Such a cancellation usually means that the process ends. While the worker goes on, a task
        is released only so often.
        """
        host = self.host
        if host is None or not self.cancelled_from_outside or not host.cancelling():
            return False
        given_back = self.task.epoch - self.task.attempt
        return given_back < _MOST_GIVEN_BACK or self._worker.is_ending

    def _raised(self, error: BaseException) -> Outcome | None:
        if self._end is None and self._is_given_back():
            return Outcome.release(self.lease)
        if self._end is not None:
            # A plain function that is asked to end can do so by raising.
            return self.interrupted()
        return self._failed(error)

    def _refused(self, error: BaseException) -> Outcome:
        if self._note_exit(error):
            return Outcome.release(self.lease)
        if issubclass(type(error), SitqError):  # other errors may quote the refused value
            self.raised = error
        # Its traceback would show none of the task's own code.
        return Outcome.failure(self.lease, error_text(error))

    def _failed(self, error: BaseException) -> Outcome:
        if self._note_exit(error):
            return Outcome.release(self.lease)
        self.raised = error
        return outcome_of_error(self.task, self.lease, error, self._worker.options.retry)
