"""Cursors of pages: the place of a page's last row in the order of a list, as a text."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import TYPE_CHECKING, Final

from sitq._validation import is_storable
from sitq.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.administration import TaskFilter

__all__ = ["IN_RESERVATION_ORDER", "decode_cursor", "encode_cursor"]

# The statuses whose lists are in the order in which tasks are reserved: queue, priority (higher
# first), eta, number. All other lists are in descending order of the ids.
IN_RESERVATION_ORDER: Final = frozenset({"pending", "scheduled", "due", "retrying"})
_LONGEST: Final = 500
_PENDING_KEYS: Final = (str, int, int, int)
_ID_KEYS: Final = (str,)
# The sizes of the numbers, one bit less than those of the columns.
_BITS: Final = (0, 15, 63, 63)


def encode_cursor(where: TaskFilter, keys: Sequence[str | int]) -> str:
    """Return the cursor of a place in the list of a filter.

    Args:
        where: the filter.
        keys: the last row's: the id, or queue, priority, eta and number.
    """
    data = json.dumps([_digest(where), *keys], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode_cursor(where: TaskFilter, cursor: str) -> list[str | int]:
    """Return the keys of the place that a cursor stands for.

    Raises:
        ValidationError: it is no cursor, or one of another filter.
    """
    kinds = _PENDING_KEYS if where.status in IN_RESERVATION_ORDER else _ID_KEYS
    try:
        padded = cursor[:_LONGEST] + "=" * (-len(cursor) % 4)
        keys: list[str | int]
        digest, *keys = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise ValidationError("cursor: this text is not the cursor of a page") from None
    is_valid = tuple(map(type, keys)) == kinds and all(map(_is_key, keys, _BITS))
    if digest != _digest(where) or not is_valid:
        raise ValidationError("cursor: it belongs to a page of another filter; start without one")
    return keys


def _is_key(key: str | int, bits: int) -> bool:
    """Return whether a store can compare its rows with a key."""
    return is_storable(key) if isinstance(key, str) else -(2**bits) <= key < 2**bits


def _digest(where: TaskFilter) -> int:
    return zlib.crc32(where.model_dump_json().encode())
