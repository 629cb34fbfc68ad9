"""One transaction, as the units of work see it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sitq.backends.sqlite._rows import to_micros

if TYPE_CHECKING:
    from datetime import datetime

    from sitq.backends.sqlite._rows import Row
    from sitq.ids import TaskId
    from sitq.protocols import Topic

__all__ = ["Work"]


@dataclass(slots=True)
class Work:
    """One transaction: where it runs, the moment it judges by, and what it has changed."""

    connection: sqlite3.Connection
    moment: datetime
    changed: set[Topic] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    """The new tasks that nobody has reserved yet."""
    ended: list[TaskId[Any]] = field(default_factory=list)
    """The tasks whose attempts have come to an end."""
    now: int = field(init=False)
    """The moment in microseconds."""

    def __post_init__(self) -> None:
        """Count the microseconds once; nearly every statement is given them."""
        self.now = to_micros(self.moment)

    @property
    def topics(self) -> set[Topic]:
        """What others have to be told of."""
        return self.changed | {"tasks"} if self.stored else self.changed

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Any = ()) -> list[Row]:
        """Run one statement, and return what it gives.

        A text that is not UTF-8 comes with surrogates in it, which no model takes: only its own
        row then turns out to be unreadable.
        """
        try:
            return self.connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise  # SQLite's own, and not the driver's, who could not decode
        self.connection.text_factory = _decoded
        try:
            return self.connection.execute(sql, parameters).fetchall()
        finally:
            self.connection.text_factory = str


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
