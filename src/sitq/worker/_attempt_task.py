"""The asyncio task of an attempt, which knows who cancels it."""

from __future__ import annotations

import asyncio
import sys
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any, Final

from sitq.context import CURRENT
from sitq.worker._execution import End

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sitq.worker._execution import Execution

__all__ = ["STARTS_EAGERLY", "AttemptTask"]

STARTS_EAGERLY: Final = sys.version_info >= (3, 12)
"""True if a task runs to where it first waits as soon as it is made."""

_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if STARTS_EAGERLY else {}


class AttemptTask(asyncio.Task[None]):
    """Runs one attempt.

    Args:
        call: makes the attempt.
        execution: is told when other code than its own cancels the task.
        loop: the worker's loop.
    """

    __slots__ = ("_call", "_execution")

    def __init__(
        self,
        call: Coroutine[Any, Any, None],
        execution: Execution,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._call = call
        self._execution = execution
        execution.host = self
        try:
            super().__init__(
                call,
                loop=loop,
                name=execution.task.function,
                context=execution.variables,
                **_EAGERLY,
            )
        except BaseException:
            execution.host = None  # it may be half made, and crashes the interpreter if it is used
            raise

    @property
    def has_begun(self) -> bool:
        """True once the attempt has made its first step."""
        return STARTS_EAGERLY or getcoroutinestate(self._call) != CORO_CREATED

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the attempt, and note if its own code does not ask for it.

        Code of the attempt runs in its context, and so do its timers and its child tasks.
        """
        if not self.has_begun:
            # asyncio would end it without a single step: nobody would hear of its end.
            self._execution.end(End.SHUTDOWN)
            return True
        if CURRENT.get(None) is not self._execution.context:
            self._execution.cancelled_from_outside = True
        is_cancelled = super().cancel(msg)
        self._execution.note_cancel(msg)
        return is_cancelled
