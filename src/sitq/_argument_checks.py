"""Checks of the store and the serializer that a queue or a worker is given.

A mistake, such as a class instead of an instance, raises where it is made, not at the first task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.errors import ValidationError
from sitq.payload.serialization import MsgpackSerializer

if TYPE_CHECKING:
    from sitq.protocols import Backend, Serializer

__all__ = ["checked_backend", "checked_serializer"]


def checked_backend(backend: Backend) -> Backend:
    """Return the backend.

    Raises:
        ValidationError: it is not a store.
    """
    _check("backend", backend, "reserve", "give a store, SQLiteBackend(path) say")
    return backend


def checked_serializer(serializer: Serializer | None) -> Serializer:
    """Return the serializer; a `MsgpackSerializer` for ``None``.

    Raises:
        ValidationError: it is not a serializer.
    """
    if serializer is None:
        return MsgpackSerializer()
    _check("serializer", serializer, "dumps", "give a serializer, MsgpackSerializer() say")
    return serializer


def _check(name: str, given: object, method: str, hint: str) -> None:
    if isinstance(given, type) or not hasattr(given, method):
        kind = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise ValidationError(f"{name}: {hint} (got {kind})")
