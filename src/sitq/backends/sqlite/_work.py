"""One transaction, as the units of work see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sitq.backends.sqlite._rows import to_micros

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

    from sitq.protocols import Topic

__all__ = ["Work"]


@dataclass(slots=True)
class Work:
    """One transaction: where it runs, the moment it judges by, and what it has changed."""

    connection: sqlite3.Connection
    moment: datetime
    changed: set[Topic] = field(default_factory=set)

    @property
    def now(self) -> int:
        """The moment in microseconds."""
        return to_micros(self.moment)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)
