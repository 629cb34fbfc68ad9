"""Run a task's function through the extensions that go around it; loaded only if there are any."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from sitq.errors import UsageError
from sitq.worker._calls import end_child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from sitq.context import TaskContext
    from sitq.extensions import Extension

__all__ = ["around", "around_in_thread"]


class _Once:
    """The ``call_next`` of one extension.

    Args:
        name: the extension's method, for errors.
        function: what it calls.
    """

    __slots__ = ("_function", "_is_called", "_name")

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self._name = name
        self._function = function
        self._is_called = False

    def __call__(self) -> Any:
        if self._is_called:
            raise UsageError(f"{self._name}: call_next was called before; an attempt is one call")
        self._is_called = True
        return self._function()


def around(
    extensions: Sequence[Extension], context: TaskContext, call: Callable[[], Awaitable[Any]]
) -> Awaitable[object]:
    """Return what runs a call through ``around_attempt`` of extensions, the first one outermost."""
    call_next = partial(_await_here, call)
    for extension in reversed(extensions):
        name = f"{type(extension).__qualname__}.around_attempt"
        call_next = partial(extension.around_attempt, context, _Once(name, call_next))
    return call_next()


def around_in_thread(
    extensions: Sequence[Extension], context: TaskContext, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function that calls another one through ``around_attempt_sync``."""

    def call(*args: Any, **kwargs: Any) -> object:
        call_next = partial(_call_here, partial(function, *args, **kwargs))
        for extension in reversed(extensions):
            name = f"{type(extension).__qualname__}.around_attempt_sync"
            call_next = partial(extension.around_attempt_sync, context, _Once(name, call_next))
        return call_next()

    return call


class _EndInChild:
    """Ends a process that was forked within; no code of extensions runs there afterwards."""

    def __enter__(self) -> None:
        self._process = os.getpid()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if os.getpid() != self._process:
            end_child(error)


async def _await_here(call: Callable[[], Awaitable[Any]]) -> Any:
    with _EndInChild():
        return await call()


def _call_here(call: Callable[[], Any]) -> Any:
    with _EndInChild():
        return call()
