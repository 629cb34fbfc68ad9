"""The stores to measure: a store is named by a text that other processes understand too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sitq import SQLiteBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq import Backend

__all__ = [
    "DEFAULT",
    "KINDS",
    "Durability",
    "forget",
    "kind_of",
    "open_store",
    "redacted_dsn",
    "store_in",
]

Durability = Literal["FULL", "NORMAL"]
DEFAULT = "sqlite"


def _sqlite(place: str, durability: Durability) -> Backend:
    return SQLiteBackend(place, synchronous=durability)


def _postgres(place: str, durability: Durability) -> Backend:
    from tests.benchmarks import postgres

    if durability != "FULL":
        raise AssertionError("the server decides")
    return postgres.backend(place)


# Another kind of store is another entry here; its place is whatever its function understands.
KINDS: dict[str, Callable[[str, Durability], Backend]] = {"sqlite": _sqlite, "postgres": _postgres}


def store_in(folder: Path, durability: Durability = "FULL", kind: str = DEFAULT) -> str:
    """Name a fresh store, which lies in a folder if it is a file."""
    if kind == "postgres":
        from tests.benchmarks import postgres

        return f"{kind}:{durability}:{postgres.new_schema()}"
    return f"{kind}:{durability}:{folder / 'queue.db'}"


def kind_of(store: str) -> str:
    """The kind of a store."""
    return store.partition(":")[0]


def redacted_dsn(store: str) -> Path:
    """The file of a store that is one; for others, what stands for it."""
    return Path(store.split(":", 2)[2])


def open_store(store: str) -> Any:
    """Make a backend for a store."""
    kind, durability, place = store.split(":", 2)
    return KINDS[kind](place, cast("Durability", durability))


def forget(kind: str) -> None:
    """Remove what measurements that have ended have left behind."""
    if kind == "postgres":
        from tests.benchmarks import postgres

        postgres.forget()
