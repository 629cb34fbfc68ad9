"""The drivers of users' connections, a room for each: none of them is imported for its own sake."""

from __future__ import annotations

from sitq.backends._transactions._cancellation import Fate, savepoint
from sitq.backends._transactions._kinds import link_to
from sitq.backends._transactions._protocols import Executor, Link, Row
from sitq.backends._transactions._user_transaction import Joined

__all__ = ["Executor", "Fate", "Joined", "Link", "Row", "link_to", "savepoint"]
