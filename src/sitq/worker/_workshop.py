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
        freed: called, in a thread, when a plain function that was left to itself has ended.
        waits: called in the loop when an attempt first lets others have their turn.
    """

    function: TaskFunction[Any]
    serializer: Serializer
    ties: Ties
    retry: RetryPolicy | None
    clock: Clock
    limiter: anyio.CapacityLimiter
    freed: Callable[[Execution], object]
    waits: Callable[[], object]
