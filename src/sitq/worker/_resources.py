"""The resources of a worker: opened before it is ready, closed after its last task has ended."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import anyio

from sitq._logging import Log, fields_of
from sitq.errors import UsageError
from sitq.resources import name_of_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["OpenResources"]

_log: Final = Log(__name__)

# Seconds that all resources together may take to close.
_CLOSING_SECONDS: Final = 30.0


class OpenResources:
    """The resources of one run of a worker, within ``async with``.

    They are opened in order and closed in reverse order, by the task that runs the worker, also if
    one of them fails to open. A cancellation of the worker does not cancel the closing.

    Args:
        factories: what makes them.
        worker_id: the worker's id, for the log.
    """

    def __init__(self, factories: Sequence[Callable[[], Any]], worker_id: str) -> None:
        self._factories: Final = factories
        self._log_fields: Final = fields_of(worker_id)
        self._values: Final[dict[Callable[[], Any], Any]] = {}
        # The exits of the context managers, by the resources' names.
        self._exits: Final[list[tuple[str, Callable[..., Any], Any]]] = []
        # Made where a loop runs.
        self._scope: anyio.CancelScope

    def get(self, factory: Callable[[], Any]) -> Any:
        """Return the resource of a factory. Any thread may call it.

        Raises:
            UsageError: the worker does not have it.
        """
        try:
            return self._values[factory]
        except (KeyError, TypeError):
            name = name_of_factory(factory)
            hint = f"give it: Worker(resources=[{name}])"
            raise UsageError(f"this worker does not have the resource {name}; {hint}") from None

    async def __aenter__(self) -> None:
        if not self._factories:
            return
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        try:
            for factory in self._factories:
                if factory not in self._values:
                    self._values[factory] = await self._open(factory)
        except BaseException as error:
            await self._close()
            self._scope.__exit__(type(error), error, error.__traceback__)
            raise

    async def _open(self, factory: Callable[[], Any]) -> Any:
        made = factory()
        kind: Any = type(made)
        if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
            value = await kind.__aenter__(made)
            self._exits.append((name_of_factory(factory), kind.__aexit__, made))
        elif hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
            value = kind.__enter__(made)
            self._exits.append((name_of_factory(factory), kind.__exit__, made))
        elif inspect.isawaitable(made):
            value = await made
        else:
            value = made
        return value

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them; an error of a resource is raised if no other one is on its way."""
        if not self._factories:
            return
        failure = await self._close()
        raised = error or failure
        if raised is None:
            self._scope.__exit__(None, None, None)
            return
        is_absorbed = self._scope.__exit__(type(raised), raised, raised.__traceback__)
        if error is None and not is_absorbed:
            raise raised

    async def _close(self) -> BaseException | None:
        """Close what is open; return the first error. Each is closed, whatever the others raise."""
        self._scope.shield = True
        self._scope.deadline = anyio.current_time() + _CLOSING_SECONDS
        first: BaseException | None = None
        while self._exits:
            name, exit_, made = self._exits.pop()
            try:
                # As at a normal end: what ended the worker is no matter of the resource.
                ended = exit_(made, None, None, None)
                if inspect.isawaitable(ended):
                    await ended
            except BaseException as error:  # noqa: BLE001 - raised once all are closed
                first = first or error
                extra = self._log_fields | {"resource": name}
                if isinstance(error, Exception):
                    _log.error(
                        "the resource %s could not be closed", name, error=error, extra=extra
                    )
                elif self._scope.cancel_called:
                    message = "the resource %s did not close in time; it was cancelled"
                    _log.warning(message, name, extra=extra)
        self._values.clear()
        return first
