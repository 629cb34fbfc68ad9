"""The errors that a store writes into a result itself, when an attempt reported no outcome."""

from __future__ import annotations

from typing import Final

__all__ = ["LOST_ERROR", "UNREADABLE"]

# Of a task whose workers were all lost; to be formatted with their number.
LOST_ERROR: Final = (
    "LeaseLostError: %d workers that ran this task died or hung before they reported"
)
# Of a task whose row has been damaged.
UNREADABLE: Final = "BackendFormatError: the stored options of this task cannot be read"
