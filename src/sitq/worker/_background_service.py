"""Run a coroutine beside the body of an ``async with``."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from sitq._logging import Log
from sitq._loops import LoopRef

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from anyio.abc import TaskStatus

__all__ = ["BackgroundService"]

_log: Final = Log(__name__)

# Keeps the tasks of the services alive.
_TASKS: Final[set[asyncio.Task[None]]] = set()


class _Service(Protocol):
    async def __call__(self, *, task_status: TaskStatus[None]) -> None: ...


class _Ready:
    """The task status that a service is given."""

    def __init__(self, ready: anyio.Event) -> None:
        self._ready: Final = ready

    def started(self, value: None = None) -> None:  # noqa: ARG002 - the protocol's parameter
        self._ready.set()


class BackgroundService:
    """Runs a service from `enter` to `leave`, which may be called by different asyncio tasks.

    A fixture may be set up by one asyncio task and torn down by another, and an anyio task group
    does not allow that. So the service is a task of the loop's own on asyncio and a system task on
    trio. If it fails, the body is cancelled, unless the asyncio task that called `enter` has ended.

    ``stop`` asks the service to end, and waits until it has. The name and the fields are for the
    log.
    """

    def __init__(
        self,
        name: str,
        service: _Service,
        stop: Callable[[], Awaitable[object]],
        fields: Mapping[str, object],
    ) -> None:
        self._name: Final = name
        self._fields: Final = fields
        self._service: Final = service
        self._stop: Final = stop
        self._on_asyncio: Final = LoopRef().asyncio is not None
        self._scope: Final = anyio.CancelScope()
        self._ready: Final = anyio.Event()
        self._ended: Final = anyio.Event()
        self._error: BaseException | None = None
        self._logged = False
        self._body: _AsyncioBody | _TrioBody | None = None

    async def enter(self) -> None:
        """Start the service and return once it is ready; raise what ended it before."""
        if self._on_asyncio:
            task = asyncio.create_task(self._run())
            _TASKS.add(task)
            task.add_done_callback(self._note_end)
        else:
            import trio

            trio.lowlevel.spawn_system_task(self._run, context=copy_context())
        try:
            await self._ready.wait()
        except BaseException:
            await self._cancel()
            self._log_lost_error()
            raise
        if self._error is not None:
            raise self._error
        if not self._ended.is_set():
            self._body = _AsyncioBody() if self._on_asyncio else _TrioBody()

    async def leave(self, error: BaseException | None) -> bool:
        """End the service by ``stop``, or cancel it if ``error`` is a cancellation or the like.

        Returns:
            True if ``error`` must not be raised further.

        Raises:
            BaseException: what ended the service, unless the body raised an error of its own.
        """
        body, self._body = self._body, None
        caused = body is not None and body.leave(error)
        if error is None or isinstance(error, Exception):
            try:
                await self._stop()
                await self._ended.wait()
            except BaseException:
                await self._cancel()
                self._log_lost_error()
                raise
        else:
            await self._cancel()
        if self._error is not None and (error is None or caused):
            raise self._error
        self._log_lost_error()
        return caused

    def _log_lost_error(self) -> None:
        """Log the error that ended the service, since another exception is raised in its place."""
        if isinstance(self._error, Exception) and not self._logged:
            _log.error("%s has failed and ends", self._name, error=self._error, extra=self._fields)

    async def _cancel(self) -> None:
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._service(task_status=_Ready(self._ready))
        except BaseException as error:
            self._error = error
            if self._body is not None:
                self._body.cancel()
                self._logged = True
                _log.error("%s has failed and ends", self._name, error=error, extra=self._fields)
            if self._must_pass(error):
                raise
        finally:
            self._ready.set()
            self._ended.set()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Note the end of a task, which asyncio may have cancelled before its first step."""
        _TASKS.discard(task)
        if not self._ended.is_set():
            if task.cancelled():
                self._error = asyncio.CancelledError()
            self._ready.set()
            self._ended.set()

    def _must_pass(self, error: BaseException) -> bool:
        """Return whether the error has to reach the loop too."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return True
        # asyncio ends its loop for these; trio does not survive an error of a system task.
        return self._on_asyncio and isinstance(error, KeyboardInterrupt | SystemExit)


class _AsyncioBody:
    """The asyncio task that called `enter`."""

    def __init__(self) -> None:
        self._task: Final = asyncio.current_task()
        self._cancelled = False

    def cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._cancelled = self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Return whether ``error`` is only the cancellation that `cancel` has requested."""
        if not self._cancelled or self._task is None:
            return False
        others = self._task.uncancel()
        return not others and isinstance(error, asyncio.CancelledError)


class _TrioBody:
    """A cancel scope around the body: trio cancels nothing else."""

    def __init__(self) -> None:
        self._scope: Final = anyio.CancelScope()
        self._scope.__enter__()

    def cancel(self) -> None:
        self._scope.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Return whether ``error`` is only the cancellation that `cancel` has requested."""
        kind = None if error is None else type(error)
        trace = None if error is None else error.__traceback__
        return bool(self._scope.__exit__(kind, error, trace))
