"""The drivers of users' connections, a room for each: none of them is imported for its own sake."""

from __future__ import annotations

from sitq.backends._transactions._fate import Fate
from sitq.backends._transactions._joined import Joined
from sitq.backends._transactions._kinds import link_to
from sitq.backends._transactions._ports import Executor, Link, Row
from sitq.backends._transactions._savepoint import savepoint

__all__ = ["Executor", "Fate", "Joined", "Link", "Row", "link_to", "savepoint"]
