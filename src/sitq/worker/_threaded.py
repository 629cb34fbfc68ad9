"""A plain function's call in a thread, and what is to be done once nobody waits for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from sitq.worker._errors import Raised
from sitq.worker._exits import end_child

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadedCall"]


class ThreadedCall:
    """One call that a thread is to make.

    Args:
        freed: called, in the thread, when a call that was left to itself has ended.
    """

    __slots__ = ("_begun", "_done", "_freed", "_left")

    def __init__(self, freed: Callable[[], object]) -> None:
        self._freed: Final = freed
        self._begun = False
        self._done = False
        self._left = False

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | Raised:
        """Make the call, in the thread, and return the value in a tuple, or what was raised.

        A call that was left to itself before it began is not made: its task may run elsewhere.
        """
        self._begun = True
        ended = (None,) if self._left else _called(function, args, kwargs)
        self._done = True
        if self._left:
            self._freed()
        return ended

    def leave(self) -> bool:
        """Note that nobody waits for it any more; return whether a thread still makes the call."""
        self._left = True
        return self._begun and not self._done


def _called(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any] | Raised:
    process = os.getpid()
    try:
        ended: tuple[Any] | Raised = (function(*args, **kwargs),)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
        if os.getpid() != process:
            end_child(error)
        ended = Raised(error)
    if os.getpid() != process:
        end_child(None)
    return ended
