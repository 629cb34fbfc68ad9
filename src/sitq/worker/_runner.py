"""One runner: a coroutine that runs reserved tasks, one after the other."""

from __future__ import annotations

import asyncio
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import anyio
import anyio.lowlevel

from sitq._logging import Log
from sitq.models import Outcome
from sitq.worker._isolation import OpenScopes, shake_off_cancellation

if TYPE_CHECKING:
    from types import TracebackType

    from sitq.protocols import Clock
    from sitq.worker._execution import Execution

__all__ = ["Company", "Runner", "contain"]

_log: Final = Log(__name__)

# How many tasks a runner runs, or for how many seconds, before the rest of the loop gets its turn.
_TURN: Final = 20
_LONG_TURN: Final = 0.005
# How long after no thread could be had a plain function is tried again, in seconds.
_NO_THREAD: Final = 1.0


class Company(Protocol):
    """What a runner asks of those that it belongs to."""

    def take(self, *, follows: bool) -> Execution | None:
        """What runs next; ``None`` if that is none of the runner's business any more."""
        ...

    def hand_over(self, execution: Execution) -> None:
        """Have another runner run what was taken."""
        ...

    def hand_back(self) -> None:
        """Release what has waited for too long."""
        ...

    def give_way(self) -> None:
        """Let other threads go on, at the end of a turn."""
        ...

    def settle(self, execution: Execution, seconds: float, *, gone: bool) -> None:
        """Note that an attempt has taken so long; ``gone``: its runner ends with it."""
        ...

    def conclude(self, execution: Execution, outcome: Outcome | None) -> None:
        """Report how an attempt has ended, unless that has been done."""
        ...

    def free(self) -> None:
        """Tell that there is room for more."""
        ...


class Runner:
    """Runs a task, and then what waits; a task may do to it what it likes.

    Args:
        company: the others.
        clock: tells how long an attempt takes.
        on_asyncio: True if the worker's loop is asyncio's.
        first: what it runs first.
    """

    __slots__ = (
        "_clock",
        "_company",
        "_current",
        "_host",
        "_on_asyncio",
        "_seconds",
        "_started",
        "has_ended",
    )

    def __init__(
        self, company: Company, clock: Clock, first: Execution, *, on_asyncio: bool
    ) -> None:
        self._company: Final = company
        self._clock: Final = clock
        self._on_asyncio: Final = on_asyncio
        self._current = first
        # The asyncio task that it is.
        self._host: asyncio.Task[Any] | None = None
        self._started = 0
        # How long the last attempt took.
        self._seconds = 0.0
        # True once it has come to its own end.
        self.has_ended = False

    async def run(self) -> None:
        """Run what there is."""
        try:
            await self._run_each()
        except _LeftOpenError:
            _log.warning("a task left a cancel scope open; its runner is replaced")
            self._company.conclude(self._current, _left_open(self._current))
            self._company.free()
        except BaseException:
            self._company.conclude(self._current, self._current.interrupted())
            raise
        self.has_ended = True

    async def _run_each(self) -> None:
        self._host = asyncio.current_task() if self._on_asyncio else None
        scopes = OpenScopes(self._host)
        following: Execution | None = self._current
        while following is not None:
            # Entering a scope takes as long as a short task does: many tasks share one.
            scope = anyio.CancelScope()
            with _Exit(scope):
                while following is not None:
                    self._current = following
                    await self._execute(scope, scopes)
                    if scope.cancel_called:
                        break
                    following = await self._following()
            if scope.cancel_called:
                self._company.conclude(self._current, self._current.interrupted())
                following = await self._following()

    async def _following(self) -> Execution | None:
        """What the runner runs next; ``None`` if that is none of its business any more.

        A task may have left something behind that cancels the asyncio task it ran in: a timer or
        a list of its own may still hold what ``asyncio.current_task()`` gave it.
        """
        host = self._host
        is_marked = host is not None and (
            bool(host.cancelling() and await shake_off_cancellation(host))
            or self._current.has_been_met
        )
        is_long = self._seconds > _LONG_TURN
        if is_long:
            self._company.hand_back()
        if not is_marked and (self._started % _TURN == 0 or is_long):
            # Functions that never wait must not keep the loop from everybody else.
            await anyio.lowlevel.checkpoint()
            self._company.give_way()
        execution = self._company.take(follows=not is_marked)
        if execution is not None and is_marked:
            self._company.hand_over(execution)
            return None
        return execution

    async def _execute(self, scope: anyio.CancelScope, scopes: OpenScopes) -> None:
        execution = self._current
        start = self._clock.monotonic()
        cancelled = True
        try:
            ended = execution.begin(scope)
            if isinstance(ended, CoroutineType):
                ended = await ended
            outcome = cast("Outcome | None", ended)
            cancelled = False
        except Exception as error:  # noqa: BLE001 - a worker never dies of a task
            outcome = _not_run(execution, error)
            cancelled = False
        except anyio.get_cancelled_exc_class():
            scopes.close(scope)
            if anyio.current_effective_deadline() == float("-inf"):
                raise
            # Not the worker's cancellation.
            outcome = _left_open(execution)
            cancelled = False
        finally:
            scopes.close(scope)
            self._started += 1
            self._seconds = self._clock.monotonic() - start
            gone = cancelled and not scope.cancel_called
            self._company.settle(execution, self._seconds, gone=gone)
        self._company.conclude(execution, outcome)


async def contain(runner: Runner) -> None:
    """Run a runner on trio, which has a word of its own for a nursery that a task left open.

    It says it to the nursery around, once the runner has ended.
    """
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(runner.run)
    except ExceptionGroup:
        if not runner.has_ended:
            raise
        _log.warning("a task left a nursery open; what runs in it is nobody's any more")


class _LeftOpenError(Exception):
    """A task has entered a scope and never left it."""


class _Exit:
    """A scope that tells what its own exit refuses from what is raised within it.

    Args:
        scope: is entered and left.
    """

    __slots__ = ("_scope",)

    def __init__(self, scope: anyio.CancelScope) -> None:
        self._scope: Final = scope

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            return bool(self._scope.__exit__(kind, error, trace))
        except RuntimeError as refusal:
            if isinstance(error, Exception):
                raise  # the error is one of sitq's own; it is the context of this one
            raise _LeftOpenError from refusal


def _not_run(execution: Execution, error: Exception) -> Outcome:
    """The outcome of an attempt that sitq itself failed to run."""
    lease = execution.lease
    _log.error("task %s: sitq failed to run it", lease.task_id, error=error)
    if execution.found_no_thread:
        return Outcome.miss(lease, _NO_THREAD)  # by no fault of the task's
    return Outcome.failure(lease, f"{type(error).__name__}: sitq failed to run the task")


def _left_open(execution: Execution) -> Outcome | None:
    """The outcome of an attempt that was cancelled by a scope that some task has left open."""
    outcome = execution.interrupted()
    if outcome is None or execution.follows:
        return outcome  # perhaps by one of the tasks before it: it is run once more
    return Outcome.failure(execution.lease, "CancelledError: by a scope of the task's own")
