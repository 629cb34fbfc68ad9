"""What attempts share: all of one worker, and all at one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import anyio

    from sitq._loops import LoopRef
    from sitq.context import TaskServices
    from sitq.models import Lease, RetryPolicy
    from sitq.payload.functions import TaskFunction
    from sitq.protocols import Clock, Serializer

__all__ = ["FunctionRuntime", "WorkerRuntime"]


@dataclass(slots=True)
class WorkerRuntime:
    """What all attempts of one worker share.

    Args:
        serializer: rebuilds arguments, encodes results.
        retry: the policy of tasks that have none of their own.
        clock: the worker's clock.
        loop: the worker's loop.
        limiter: the worker's threads.
        grace: seconds that the clean-up of a cancelled attempt may take.
        scope: the class of the loop's cancel scopes.
        host: the worker's asyncio task; ``None`` on trio.
        freed: called in a thread with the lease of an abandoned call that has ended.
        leave: ends the worker with the exception of a signal handler.
        closing: whether the worker has begun to end.
    """

    serializer: Serializer
    retry: RetryPolicy | None
    clock: Clock
    loop: LoopRef
    limiter: anyio.CapacityLimiter
    grace: float
    scope: type[anyio.CancelScope]
    host: asyncio.Task[Any] | None
    freed: Callable[[Lease], object]
    leave: Callable[[BaseException], object]
    closing: bool = False

    @property
    def is_ending(self) -> bool:
        """True if the worker ends, or asyncio cancels its task along with all others."""
        return self.closing or (self.host is not None and self.host.cancelling() > 0)


@dataclass(frozen=True, slots=True)
class FunctionRuntime:
    """What all attempts at one function share.

    Args:
        function: the function to call.
        services: what the function may reach through `current_task`.
        worker: what it shares with the attempts at other functions.
    """

    function: TaskFunction[Any]
    services: TaskServices
    worker: WorkerRuntime
