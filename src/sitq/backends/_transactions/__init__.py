"""The drivers of users' connections, a room for each: none of them is imported for its own sake."""

from __future__ import annotations

from sitq.backends._transactions._cancellation import CancellationGuard, savepoint
from sitq.backends._transactions._kinds import user_connection_of
from sitq.backends._transactions._protocols import Executor, Row, UserConnection
from sitq.backends._transactions._user_transaction import UserTransaction

__all__ = [
    "CancellationGuard",
    "Executor",
    "Row",
    "UserConnection",
    "UserTransaction",
    "savepoint",
    "user_connection_of",
]
