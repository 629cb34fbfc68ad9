"""The asyncio task of an attempt, which knows who cancels it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from sitq.context import CURRENT

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sitq.worker._execution import Execution

__all__ = ["AttemptTask"]

# From this version on, a task may run to where it first waits as soon as it is made.
_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


class AttemptTask(asyncio.Task[None]):
    """Runs one attempt.

    Args:
        call: makes the attempt.
        execution: is told when other code than its own cancels the task.
        loop: the worker's loop.
    """

    __slots__ = ("_execution",)

    def __init__(
        self,
        call: Coroutine[Any, Any, None],
        execution: Execution,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._execution = execution
        execution.host = self
        super().__init__(
            call,
            loop=loop,
            name=execution.task.function,
            context=execution.variables,
            **_EAGERLY,
        )

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the attempt, and note if its own code does not ask for it.

        Code of the attempt runs in its context, and so do its timers and its child tasks.
        """
        if CURRENT.get(None) is not self._execution.context:
            self._execution.cancelled_from_outside = True
        return super().cancel(msg)
