"""One statement's surroundings, as the units of work see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sitq.backends.postgres._driver import Link, Row
    from sitq.backends.postgres._sql import Statements
    from sitq.backends.postgres._telling import Teller
    from sitq.protocols import Topic

__all__ = ["Work"]


@dataclass(slots=True)
class Work:
    """Where a unit of work runs, the moment it judges by, and what it has changed.

    ``moment`` is that of a test's clock; ``None``: the server's clock counts. ``told`` are the
    topics that its statement tells if it changes them; of these ``owed`` have to be told anyhow.
    ``is_sent`` is true once a statement may have reached the server, ``has_committed`` once one of
    them has been carried out.
    """

    link: Link
    statements: Statements
    teller: Teller
    moment: datetime | None
    changed: set[Topic] = field(default_factory=set)
    told: set[Topic] = field(default_factory=set)
    owed: set[Topic] = field(default_factory=set)
    is_sent: bool = False
    has_committed: bool = False

    async def rows(self, sql: str, *parameters: Any) -> list[Row]:
        """Run one statement, and return what it gives."""
        self.is_sent = True
        rows = await self.link.fetch(self.statements[sql], parameters)
        self.has_committed = True
        return rows

    def news(self, topics: Iterable[Topic]) -> tuple[str, list[str]]:
        """What a statement is to tell, and the channels, if these topics change with it."""
        channels, told, owed = self.teller.tell_with(topics)
        self.told |= told
        self.owed |= owed
        return self.teller.token, channels
