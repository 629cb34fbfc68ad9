"""Cancel an attempt: once, then after a grace for its clean-up at every await."""

from __future__ import annotations

from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Coroutine, Generator

__all__ = ["AttemptScope"]

T = TypeVar("T")


class AttemptScope:
    """The cancel scopes of an attempt, which runs in ``with scope.outer, scope.inner``.

    anyio and trio cancel again at each ``await``. So there are two scopes. The outer one is
    cancelled first. Once that has reached the attempt, the inner one shields it for the grace. At
    the end of the grace, in seconds, the inner one is cancelled for good.
    """

    __slots__ = ("_grace", "_host", "cancel_called", "inner", "outer")

    def __init__(
        self,
        scope: type[anyio.CancelScope],
        grace: float,
        host: asyncio.Task[Any] | None = None,
    ) -> None:
        self.outer = scope()
        self.inner = scope()
        self._grace = grace
        self._host = host
        self.cancel_called = False
        """True once the attempt is cancelled."""

    def cancel(self) -> None:
        """Cancel the attempt once, and for good after its grace; called in the loop."""
        if self._grace <= 0:
            self.cancel_now()
            return
        if self.cancel_called:
            return
        self.cancel_called = True
        if self._host is not None and self._host.cancelling():
            self._begin_grace()  # asyncio has cancelled it already
        else:
            self.outer.cancel(self._reason)

    def cancel_now(self) -> None:
        """Cancel the attempt for good, without a grace; called in the loop."""
        self.cancel_called = True
        self.inner.cancel()

    @property
    def _reason(self) -> str:
        return f"the attempt is to end ({id(self):x})"

    def note_cancel(self, message: object) -> None:
        """Begin the grace if the outer scope is what makes asyncio cancel the task.

        The outer scope cancels the task once it is no longer shielded. Scopes of the task's own
        may cancel it before.
        """
        if self.cancel_called and type(message) is str and self._reason in message:
            self._begin_grace()

    def _begin_grace(self) -> None:
        if not self.inner.shield:
            host = self._host
            now = anyio.current_time() if host is None else host.get_loop().time()
            self.inner.deadline = now + self._grace
            self.inner.shield = True

    @coroutine
    def watched(self, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await something on trio, and begin the grace when a cancellation reaches it."""
        steps: Coroutine[Any, Any, T] = (
            awaitable if isinstance(awaitable, CoroutineType) else _awaited(awaitable)
        )
        step, value = steps.send, None
        while True:
            try:
                request = step(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                value = yield request
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it goes on to the awaited coroutine
                step, value = steps.throw, error
            else:
                step = steps.send
                self._note(getattr(value, "error", None))

    def _note(self, raised: BaseException | None) -> None:
        """Begin the grace if the outer scope is what makes trio cancel the attempt.

        Scopes of the attempt's own cancel it too, such as that of every ``trio.sleep()``.
        """
        if not self.cancel_called or raised is None:
            return
        is_cancelled = issubclass(type(raised), anyio.get_cancelled_exc_class())
        if is_cancelled and getattr(raised, "reason", self._reason) == self._reason:
            self._begin_grace()


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
