"""What all attempts of a worker at one function share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

    from sitq.context import Ties
    from sitq.functions import TaskFunction
    from sitq.models import RetryPolicy
    from sitq.protocols import Clock, Serializer
    from sitq.worker._execution import Execution

__all__ = ["Workshop"]


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where attempts at one function are made.

    Args:
        function: the function to call.
        serializer: rebuilds the arguments.
        ties: what the function may reach through `current_task`.
        retry: the policy of tasks that have none of their own.
        clock: tells when a timeout ends.
        limiter: the worker's threads.
        grace: seconds that the clean-up of a cancelled attempt may take.
        call_later: has the loop call a function after so many seconds, and returns what takes
            that back.
        scope: makes a cancel scope of the worker's loop.
        freed: called, in a thread, when a plain function that was left to itself has ended.
        leave: ends the worker by what a signal has raised.
        is_ending: tells whether the worker ends.
    """

    function: TaskFunction[Any]
    serializer: Serializer
    ties: Ties
    retry: RetryPolicy | None
    clock: Clock
    limiter: anyio.CapacityLimiter
    grace: float
    call_later: Callable[[float, Callable[[], object]], Callable[[], object]]
    scope: type[anyio.CancelScope]
    freed: Callable[[Execution], object]
    leave: Callable[[BaseException], object]
    is_ending: Callable[[], bool]
