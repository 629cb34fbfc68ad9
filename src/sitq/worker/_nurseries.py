"""Where attempts run on trio: each in a task of its own, in a nursery that it has to itself.

An attempt may leave a nursery of its own open. trio reports that as an error of the attempt's task,
which cancels the nursery around it and everything else in there. Opening a nursery for each attempt
would cost as much as a short attempt does, so a nursery is used again once its attempt has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq._logging import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    import trio
    from anyio.abc import TaskStatus

__all__ = ["Nurseries"]

_log: Final = Log(__name__)


class Nurseries:
    """Starts attempts on trio, each in a nursery that no other attempt uses at the same time.

    They are out of reach of the worker's own cancellation.
    """

    def __init__(self) -> None:
        import trio

        self._trio: Final = trio
        self._outer: trio.Nursery | None = None
        self._idle: Final[list[trio.Nursery]] = []
        self._closed: Final = trio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Hold the attempts until `close` is called and all of them have ended."""
        task_status.started()
        # A caller that was cancelled meanwhile waits for this task, which the shield would keep.
        await self._trio.lowlevel.checkpoint_if_cancelled()
        with self._trio.CancelScope(shield=True):
            async with self._trio.open_nursery() as self._outer:
                await self._closed.wait()

    def close(self) -> None:
        """Let `run` return once the attempts have ended."""
        self._closed.set()

    def start(
        self, variables: Context, attempt: Callable[..., Awaitable[None]], *arguments: Any
    ) -> None:
        """Start an attempt in a copy of ``variables``; `run` has to be running.

        Args:
            variables: the context variables of the attempt.
            attempt: raises nothing.
            arguments: its positional arguments.
        """
        while self._idle:
            nursery = self._idle.pop()
            if not nursery.cancel_scope.cancel_called:
                variables.run(nursery.start_soon, self._attempt, nursery, attempt, arguments)
                return
        if self._outer is not None:
            self._outer.start_soon(self._open, variables, attempt, arguments)

    async def _open(
        self, variables: Context, attempt: Callable[..., Awaitable[None]], arguments: Any
    ) -> None:
        """Open a nursery for an attempt and for those that follow it."""
        try:
            async with self._trio.open_nursery() as nursery:
                variables.run(nursery.start_soon, self._attempt, nursery, attempt, arguments)
                await self._closed.wait()
        except ExceptionGroup:
            _log.warning("a task left a nursery open; what runs in it belongs to no task any more")

    async def _attempt(
        self, nursery: trio.Nursery, attempt: Callable[..., Awaitable[None]], arguments: Any
    ) -> None:
        await attempt(*arguments)
        self._idle.append(nursery)
