"""Run a worker in an event loop of its own, until signals end it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import anyio

from sitq._logging import Log
from sitq._loops import LoopRef, in_event_loop
from sitq.context import CURRENT
from sitq.errors import UsageError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import FrameType

__all__ = ["EventLoop", "run_script"]

EventLoop = Literal["asyncio", "trio"]

_log: Final = Log(__name__)

_BY_SIGNAL: Final = 128  # shells add it to a signal's number to make an exit code
_STOPPING: Final = "%s: the worker lets running tasks finish; once more ends it at once"
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


def run_script(
    work: Callable[[], Awaitable[int]],
    stop: Callable[[], object],
    backend: EventLoop,
    fields: Mapping[str, object],
) -> int:
    """Run ``work`` in a loop of its own; the first signal calls ``stop``, the second cancels it.

    See `sitq.Worker.run`. Both are called in the loop. The fields are for the log.
    """
    _check(backend)
    ending = _SignalState(stop, fields)

    async def main() -> int:
        with anyio.CancelScope() as scope:
            ending.begin(scope)
            return await work()
        return 0  # cancelled: the exit code says so

    with _handled(ending):
        try:
            started = anyio.run(main, backend=backend)
        except BaseException as error:
            if not (ending.at_once and _is_interrupt(error)):
                raise
            started = 0
    if ending.at_once:
        raise SystemExit(_BY_SIGNAL + ending.last)
    return started


def _check(backend: object) -> None:
    if backend not in get_args(EventLoop):
        raise ValidationError(f"backend: give 'asyncio' or 'trio' (got {type(backend).__name__})")
    if in_event_loop():
        hint = "await its start(), or use it as 'async with worker:'"
        raise UsageError(f"run() starts an event loop, and this thread runs one already: {hint}")
    if backend == "trio" and find_spec("trio") is None:
        raise UsageError("backend='trio' needs trio: pip install 'sitq[trio]'")


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error is a KeyboardInterrupt, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(KeyboardInterrupt)[1] is None
    return isinstance(error, KeyboardInterrupt)


class _SignalState:
    """The signals so far, and their effect on the worker."""

    def __init__(self, stop: Callable[[], object], fields: Mapping[str, object]) -> None:
        self._stop: Final = stop
        self._fields: Final = fields
        self._pid: Final = os.getpid()
        self._loop: LoopRef | None = None
        self._scope: anyio.CancelScope | None = None
        self._count = 0
        self.last = 0

    @property
    def at_once(self) -> bool:
        """Return whether a second signal has come."""
        return self._count > 1

    @property
    def inherited(self) -> bool:
        """Return whether the process was forked meanwhile."""
        return self._pid != os.getpid()

    def begin(self, scope: anyio.CancelScope) -> None:
        """Act in the caller's loop from now on; the second signal cancels the scope."""
        self._scope = scope
        self._loop = LoopRef()
        if self._count:
            self._loop.call_soon(self._act)

    def receive(self, number: int) -> None:
        """Take a signal; called in the main thread, between any two bytecodes."""
        self._count += 1
        self.last = number
        if self._loop is not None:
            self._loop.call_soon(self._act)
        if self.at_once and CURRENT.get(None) is not None:
            raise KeyboardInterrupt  # a task computes, and the loop cannot end it

    def _act(self) -> None:
        name = signal.Signals(self.last).name
        if self.at_once and self._scope is not None:
            self._scope.cancel()
            message = "%s: the worker ends at once; running tasks are handed back"
            _log.warning(message, name, extra=self._fields)
            return
        self._stop()
        if self._loop is not None:
            # It comes after the call that `stop` schedules: once it is logged, nothing starts.
            self._loop.call_soon(partial(_log.info, _STOPPING, name, extra=self._fields))


@contextmanager
def _handled(ending: _SignalState) -> Iterator[None]:
    """Handle the signals that end a process by ``ending``, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if ending.inherited:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        else:
            ending.receive(number)

    try:
        for each in _SIGNALS:
            # A parent ignores a signal on purpose, as a shell does for its background jobs.
            if signal.getsignal(each) is not signal.SIG_IGN:
                previous[each] = signal.signal(each, handle)
        yield
    finally:
        for each, before in previous.items():
            signal.signal(each, signal.SIG_DFL if before is None else before)
