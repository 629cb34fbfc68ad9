"""Run operations within a user's transaction, all or nothing, also under cancellation.

An operation runs in a savepoint. Either it is kept before the savepoint is released, or a
cancellation of the caller comes first and the operation is rolled back to the savepoint. So a
cancelled caller finds the transaction as it was before, and no statement under way.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from sitq.backends._transactions._user_connection import Executor

__all__ = ["CancellationGuard", "savepoint"]

T = TypeVar("T")

# Seconds that an operation that must not be interrupted may go on after its caller was cancelled.
_GRACE: Final = 5.0


class _GivenUpError(Exception):
    """The caller of this operation was cancelled."""


class CancellationGuard:
    """Decide whether one operation is kept or rolled back; it may run in another thread.

    Args:
        interruptible: the connection stays usable if a statement is cancelled. Then a cancelled
            caller does not wait for a statement that waits for a lock.
    """

    def __init__(self, *, interruptible: bool = False) -> None:
        self._interruptible: Final = interruptible
        self._lock: Final = threading.Lock()
        self._working: asyncio.Task[Any] | None = None
        self._given_up = False
        self._kept = False

    # -- for the unit ------------------------------------------------------------------------

    @contextmanager
    def work(self) -> Iterator[None]:
        """Keep what the block does, unless it raises or the caller was cancelled."""
        self._check()
        self._working = asyncio.current_task() if self._interruptible else None
        try:
            yield
        finally:
            self._working = None
        with self._lock:
            self._check()
            self._kept = True

    def _check(self) -> None:
        if self._given_up:
            raise _GivenUpError

    # -- for the caller ----------------------------------------------------------------------

    async def settle(self, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the operation in a task that a cancellation of the caller does not cancel.

        A cancellation that comes after the operation was kept is raised by what the caller awaits
        next.

        Raises:
            UsageError: the caller's loop is not asyncio's.
        """
        try:
            unit = asyncio.get_running_loop().create_task(run())
        except RuntimeError:
            raise UsageError("bind: this connection can be awaited in asyncio only") from None
        try:
            await asyncio.wait({unit})
        except asyncio.CancelledError as cancellation:
            self._give_up()
            await self._outlast(unit)
            if unit.cancelled() or unit.exception() is not None:
                raise
            _cancel_later(cancellation)
        return unit.result()

    def _give_up(self) -> None:
        with self._lock:
            self._given_up = not self._kept
        if self._working is not None:
            self._working.cancel()

    async def _outlast(self, unit: asyncio.Task[Any]) -> None:
        """Return once the operation has ended, despite further cancellations."""
        give_up_at = asyncio.get_running_loop().time() + _GRACE
        with anyio.CancelScope(shield=True):
            while not unit.done():
                rest = give_up_at - asyncio.get_running_loop().time()
                if rest <= 0 and not self._interruptible:
                    unit.cancel()
                try:
                    await asyncio.wait({unit}, timeout=max(rest, _GRACE / 5))
                except asyncio.CancelledError:
                    continue  # the first one is raised, or comes again


def _cancel_later(cancellation: asyncio.CancelledError) -> None:
    """Raise a cancellation at the caller's next await; a cancel scope does so by itself."""
    caller = asyncio.current_task()
    if caller is None or anyio.current_effective_deadline() == float("-inf"):
        return
    wanted = caller.cancelling()

    def cancel_again() -> None:
        # What requested it, such as a timeout, may have ended and withdrawn it meanwhile.
        if caller.cancelling() >= wanted and not caller.done():
            caller.uncancel()
            caller.cancel(*cancellation.args)

    asyncio.get_running_loop().call_soon(cancel_again)


# A statement's cancellation may reach the server late, and end the next one.
_TRIES: Final = 3


async def savepoint(
    executor: Executor, work: Callable[[], Coroutine[Any, Any, T]], guard: CancellationGuard
) -> T:
    """Run an operation in a savepoint; if it raises, roll back to the savepoint."""
    await executor.fetch("SAVEPOINT sitq")
    try:
        with guard.work():
            answer = await work()
        await executor.fetch("RELEASE SAVEPOINT sitq")
    except BaseException:
        await _roll_back(executor)
        raise
    return answer


async def _roll_back(executor: Executor) -> None:
    for _ in range(_TRIES):
        try:
            await executor.fetch("ROLLBACK TO SAVEPOINT sitq")
        except (Exception, KeyboardInterrupt):  # noqa: BLE001, S112
            # An error that has ended the whole transaction has taken the savepoint along.
            continue
        await executor.fetch("RELEASE SAVEPOINT sitq")
        return
