"""The stores to measure: a store is named by a text that other processes understand too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sitq import SQLiteBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq import Backend

__all__ = ["DEFAULT", "KINDS", "Durability", "open_store", "place_of", "store_in"]

Durability = Literal["FULL", "NORMAL"]
DEFAULT = "sqlite"


def _sqlite(place: str, durability: Durability) -> Backend:
    return SQLiteBackend(place, synchronous=durability)


# Another kind of store is another entry here; its place is whatever its function understands.
KINDS: dict[str, Callable[[str, Durability], Backend]] = {"sqlite": _sqlite}


def store_in(folder: Path, durability: Durability = "FULL", kind: str = DEFAULT) -> str:
    """Name a store that lies in a folder."""
    return f"{kind}:{durability}:{folder / 'queue.db'}"


def place_of(store: str) -> Path:
    """The file of a store that is one."""
    return Path(store.split(":", 2)[2])


def open_store(store: str) -> Any:
    """Make a backend for a store."""
    kind, durability, place = store.split(":", 2)
    return KINDS[kind](place, cast("Durability", durability))
