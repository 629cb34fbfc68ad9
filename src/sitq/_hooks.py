"""The extensions of a queue or a worker, by the methods that each overrides."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sitq._logging import Log
from sitq._signal_exits import find_signal_exit
from sitq.errors import ValidationError

if TYPE_CHECKING:
    from sitq.extensions import Event, Extension

__all__ = ["NO_HOOKS", "Hooks"]

_log: Final = Log(__name__)


class Hooks:
    """Calls the methods that extensions override, in the order of the extensions.

    Args:
        extensions: as the user gives them.

    Raises:
        ValidationError: one of them is not an extension.
    """

    __slots__ = (
        "_listeners",
        "_logged",
        "around_attempt",
        "around_attempt_sync",
        "around_enqueue",
        "extensions",
    )

    def __init__(self, extensions: Iterable[Extension] = ()) -> None:
        self.extensions: Final = _checked(extensions)
        self.around_enqueue: Final = _overriding("around_enqueue", self.extensions)
        self.around_attempt: Final = _overriding("around_attempt", self.extensions)
        self.around_attempt_sync: Final = _overriding(
            "around_attempt_sync", self.extensions, is_async=False
        )
        self._listeners: Final = _overriding("on_event", self.extensions, is_async=False)
        # The id of the extension and the type of the event of each error that was logged.
        self._logged: Final[set[tuple[int, type]]] = set()

    @property
    def listen(self) -> bool:
        """True if an extension hears events, so that they have to be made."""
        return bool(self._listeners)

    @property
    def of_queue(self) -> bool:
        """True if a queue has to call an extension."""
        return bool(self._listeners or self.around_enqueue)

    def emit(self, event: Event) -> None:
        """Tell the extensions of an event; raise nothing but what ends the process."""
        for extension in self._listeners:
            try:
                extension.on_event(event)
            except BaseException as error:
                if find_signal_exit(error) is not None:
                    raise
                self._log_once(extension, type(event), error)

    def _log_once(self, extension: Extension, kind: type, error: BaseException) -> None:
        if (id(extension), kind) not in self._logged:  # an extension may have no hash
            self._logged.add((id(extension), kind))
            _log.error(
                "on_event of the extension %s has failed for the event %s; it will not be logged "
                "again for such events",
                type(extension).__qualname__,
                kind.__name__,
                error=error,
            )


def _checked(extensions: object) -> tuple[Extension, ...]:
    if not isinstance(extensions, Iterable) or isinstance(extensions, str):
        kind = type(extensions).__name__
        raise ValidationError(f"extensions: give a list of extensions, [Timing()] say (got {kind})")
    given: tuple[object, ...] = tuple(extensions)
    if not given:
        return ()
    # Not loaded where no extension is used.
    from sitq.extensions import Extension

    checked = tuple(each for each in given if isinstance(each, Extension))
    for each in given:
        if not isinstance(each, Extension):
            kind = f"the class {each.__name__}" if isinstance(each, type) else type(each).__name__
            hint = "give instances of subclasses of sitq.Extension"
            raise ValidationError(f"extensions: {hint} (got {kind})")
    return checked


def _overriding(
    name: str, extensions: tuple[Extension, ...], *, is_async: bool = True
) -> tuple[Extension, ...]:
    """Return the extensions whose classes have a method of their own by this name."""
    if not extensions:
        return ()
    from sitq.extensions import Extension

    inherited = getattr(Extension, name)
    found = tuple(each for each in extensions if getattr(type(each), name) is not inherited)
    for each in found:
        if not is_async and inspect.iscoroutinefunction(getattr(each, name)):
            method = f"{type(each).__qualname__}.{name}"
            raise ValidationError(f"extensions: {method} must be a plain function, not async")
    return found


NO_HOOKS: Final = Hooks()
