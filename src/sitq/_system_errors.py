"""Error texts that sitq stores when a task has none of its own."""

from __future__ import annotations

from typing import Final

__all__ = [
    "LOST_ATTEMPT",
    "LOST_ERROR",
    "NO_ATTEMPT_LEFT",
    "UNREADABLE",
    "UNSTORABLE_ERROR",
    "UNSTORABLE_VALUE",
]

# Of a task whose workers were all lost; to be formatted with their number.
LOST_ERROR: Final = (
    "LeaseLostError: %d workers that ran this task died or hung before they reported"
)
# Of an attempt whose lease ended without an outcome.
LOST_ATTEMPT: Final = "LeaseLostError: the worker died or hung before it reported"
# Of a task whose row has been damaged.
UNREADABLE: Final = "BackendFormatError: the stored options of this task cannot be read"
# Of a pending task that was edited so that it can never start. The PostgreSQL function `reserve`
# writes it too, and has no parameter for it: another signature would stop workers of the version
# before during a deploy.
NO_ATTEMPT_LEFT: Final = "BackendFormatError: this task has no attempt left, and has not ended"
# Of an attempt whose error or result the store has refused.
UNSTORABLE_ERROR: Final = "BackendValueError: the store cannot keep the error of this attempt"
UNSTORABLE_VALUE: Final = "BackendValueError: the store cannot keep the result of this attempt"
