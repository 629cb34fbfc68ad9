"""What keeps tasks apart that are run, one after the other, by one coroutine of the worker's.

A new coroutine of the loop for each task would do it too, for some 20 microseconds each.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from contextvars import copy_context
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["Isolation", "OpenScopes", "is_cancelled_by", "shake_off_cancellation"]

T = TypeVar("T")


class Isolation:
    """A context of its own for one attempt: what it sets in a ContextVar ends with it.

    Args:
        waits: called when the attempt first gives the loop to others, just before it does.
    """

    __slots__ = ("_context", "_waits", "suspended")

    def __init__(self, waits: Callable[[], object]) -> None:
        self._context: Final = copy_context()
        self._waits: Final = waits
        self.suspended = False
        """True once the attempt has given the loop to others, who may have met its asyncio task."""

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function in the context."""
        return self._context.run(function, *args, **kwargs)

    @coroutine
    def wait_for(self, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await something in the context, step by step."""
        steps = awaitable if isinstance(awaitable, CoroutineType) else _awaited(awaitable)
        step: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            try:
                wish = self._context.run(step, value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if not self.suspended:
                self.suspended = True
                self._waits()
            try:
                value = yield wish
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is for the awaited one to judge
                step, value = steps.throw, error
            else:
                step = steps.send


class OpenScopes:
    """The scopes that an asyncio task is in, past the functions that it runs.

    A function may enter a scope and never leave it: an async generator that was left in the
    middle of a ``fail_after``, say. anyio then refuses to let anybody leave the scopes around it.
    trio puts that right by itself.
    """

    __slots__ = ("_state",)

    def __init__(self, host: asyncio.Task[Any] | None) -> None:
        # anyio has no public way to ask for a task's scope. Without it, nothing is closed.
        states = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
        self._state: Any = None if host is None else states.get(host)

    def close(self, outermost: anyio.CancelScope) -> None:
        """Leave all scopes within ``outermost``."""
        state = self._state
        while state is not None and (scope := state.cancel_scope) is not outermost and scope:
            scope.__exit__(None, None, None)


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def is_cancelled_by(error: BaseException) -> bool:
    """Tell if an error is what a call of ``cancel()`` of the caller's asyncio task raises."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def shake_off_cancellation(task: asyncio.Task[Any]) -> bool:
    """Undo what code did that cancelled the asyncio task that runs it; tell if it did.

    The worker's own cancellations go through scopes and are none of this.
    """
    if not task.cancelling() or anyio.current_effective_deadline() == float("-inf"):
        return False
    while task.uncancel():
        pass
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # if it has not been raised yet, it is now
    return True
