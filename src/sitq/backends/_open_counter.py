"""Count the users of a backend, and let only one event loop at a time use it."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import anyio

from sitq._loops import LoopRef, run_to_completion
from sitq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OpenCounter", "OpenStore"]


class OpenStore(Protocol):
    """What is open between the first `open` and the last `close`."""

    @property
    def loop(self) -> LoopRef:
        """Return the loop of its users."""
        ...

    @property
    def pid(self) -> int:
        """Return the process that opened it."""
        ...

    async def connect(self) -> None:
        """Open it."""
        ...

    async def close(self) -> None:
        """Close it, after what is under way has ended."""
        ...

    def abandon(self) -> None:
        """Start to close without waiting; from any thread.

        Called if the loop has ended, or the users were collected as garbage, before `close`.
        """
        ...


S = TypeVar("S", bound=OpenStore)
# Stores that a forked process inherited; kept, since collecting them would close connections.
_inherited: Final[list[OpenStore]] = []


class OpenCounter(Generic[S]):
    """The users of one instance of a backend.

    Args:
        name: returns the name of the instance for errors.
        make: makes the store that is opened for a loop.
        advice: for errors: what two loops may share instead.
    """

    def __init__(self, name: Callable[[], str], make: Callable[[LoopRef], S], advice: str) -> None:
        self._name: Final = name
        self._make: Final = make
        self._advice: Final = advice
        self._count = 0
        self._open: S | None = None
        # The loop that has it open, or is about to; threads may try at the same instant.
        self._holder: LoopRef | None = None
        self._claiming = threading.Lock()
        self._opening = anyio.Lock()

    def __del__(self) -> None:
        """Close the store if its users have forgotten to."""
        if sys.is_finalizing():
            return  # threads that stand still by now may hold locks; what is open ends with us
        state: S | None = getattr(self, "_open", None)
        if state is not None and state.pid == os.getpid():
            state.abandon()

    async def enter(self) -> None:
        """Count a user in; the first one connects.

        Raises:
            UsageError: the instance is open in another event loop or was inherited by a fork.
        """
        loop = LoopRef()
        self._claim(loop)
        try:
            async with self._opening:
                if self._open is None:
                    self._open = await self._connect(loop)
                self.use()
                self._count += 1
        finally:
            self._disclaim()

    async def leave(self) -> None:
        """Count a user out; the last one disconnects.

        Raises:
            UsageError: the instance is open in another event loop.
        """
        state = self._open
        if state is None or not self._count:
            return
        if state.pid != os.getpid():
            _inherited.append(state)  # it is the parent's: nothing of it may be touched
            self._count = 0
            return
        if not state.loop.is_here:
            raise UsageError(self._elsewhere())
        self._count -= 1
        if self._count == 0:
            self._open = None
            self._disclaim()
            await run_to_completion(state.close)

    def use(self) -> S:
        """Return what is open, for a caller in the loop that opened it."""
        state = self._open
        if state is not None and state.loop.is_here:
            return state
        self.use_from_thread()  # raises if there is a better reason
        raise UsageError(self._elsewhere())

    def use_from_thread(self) -> S:
        """Return what is open, for a caller in any thread."""
        state = self._open
        if state is None:
            message = f"{self._name()} is not open: use 'async with' on its queue, or connect()"
            raise UsageError(message)
        self._check_fork(state)
        return state

    def _claim(self, loop: LoopRef) -> None:
        """Take the instance for a loop, unless another one has it."""
        with self._claiming:
            if self._open is not None:
                self._check_fork(self._open)
            holder = self._holder
            if holder is None or holder.ended:
                if self._open is not None:
                    self._open.abandon()
                self._count, self._open = 0, None
                self._holder, self._opening = loop, anyio.Lock()
            elif not holder.is_here:
                raise UsageError(self._elsewhere())

    def _disclaim(self) -> None:
        """Release the instance for other loops, if it has no users."""
        with self._claiming:
            if self._open is None and not self._opening.locked():
                self._holder = None

    async def _connect(self, loop: LoopRef) -> S:
        state = self._make(loop)
        connected = False

        async def connect() -> None:
            nonlocal connected
            await state.connect()
            connected = True

        try:
            await run_to_completion(connect)  # half an opening would leave something behind
        except BaseException:
            if connected:  # and the caller was cancelled meanwhile
                await run_to_completion(state.close)
            raise
        return state

    def _check_fork(self, state: S) -> None:
        if state.pid != os.getpid():
            message = (
                f"{self._name()} was opened before a fork; make a new one in the child process"
            )
            raise UsageError(message)

    def _elsewhere(self) -> str:
        return (
            f"{self._name()} is open in another event loop; "
            f"give each loop an instance of its own ({self._advice})"
        )
