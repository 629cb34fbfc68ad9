"""What keeps tasks apart that are run, one after the other, by one coroutine of the worker's.

A new coroutine of the loop for each task would do it too, for some 20 microseconds each.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

__all__ = [
    "OpenScopes",
    "go_on",
    "is_cancelled_by",
    "shake_off_cancellation",
    "steps_of",
    "wait_for",
]

T = TypeVar("T")


def steps_of(awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    """Something to await as what can be run step by step."""
    return awaitable if type(awaitable) is CoroutineType else _awaited(awaitable)


@coroutine
def wait_for(
    variables: Context, awaitable: Awaitable[T], waits: Callable[[], object]
) -> Generator[Any, Any, T]:
    """Await something in a context of its own; what it sets in a ContextVar ends there.

    Args:
        variables: the context.
        awaitable: what to await.
        waits: called when the loop is first given to others, just before it is.
    """
    steps = steps_of(awaitable)
    try:
        wish = variables.run(steps.send, None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    waits()
    return (yield from go_on(variables, steps, wish))


@coroutine
def go_on(variables: Context, steps: Coroutine[Any, Any, T], wish: Any) -> Generator[Any, Any, T]:
    """Await the rest of something whose last step was to wish to wait."""
    step: Callable[[Any], Any]
    while True:
        try:
            value = yield wish
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it is for the awaited one to judge
            step, value = steps.throw, error
        else:
            step = steps.send
        try:
            wish = variables.run(step, value)
        except StopIteration as stop:
            result: T = stop.value
            return result


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
    if not issubclass(type(error), asyncio.CancelledError):
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
