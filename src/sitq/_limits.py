"""What decoding may cost: bounds that are checked before a value is built.

Decoding runs on the event loop with the interpreter's lock held, so a payload that is cheap to
send and dear to decode would stop every other task, their heartbeats included.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from sitq.errors import SerializationError

if TYPE_CHECKING:
    import decimal
    from collections.abc import Collection

__all__ = [
    "MAX_DIGITS",
    "MAX_EXPONENT",
    "Budget",
    "check_decimal",
    "check_decimal_text",
]

MAX_DIGITS: Final = 1000
MAX_EXPONENT: Final = 1000
# A sign, a point, an exponent, and the digits; or a NaN with digits.
_LONGEST_DECIMAL: Final = MAX_DIGITS + 32
# Python adds a secret to the hashes of these, but not with PYTHONHASHSEED=0.
_RANDOM: Final = frozenset({str, bytes}) if sys.flags.hash_randomization else frozenset[type]()
# So few keys compare quickly whatever their hashes are.
_FEW: Final = 4
# What comparing the keys that share a hash may cost, in units of about 10 ns.
_MAX_COMPARING: Final = 1_000_000
_PER_KEY: Final = 20
# What `Budget.take` says.
_TOO_MANY: Final = (
    "the payload holds more than %s values (a container or a value with a type of its own counts "
    "as several); store the data elsewhere and pass where it is, or pass bytes"
)


class Budget:
    """Counts down what one payload may cost.

    Args:
        values: how many values the payload may hold.
    """

    __slots__ = ("_comparing", "_left", "_values")

    def __init__(self, values: int) -> None:
        self._values: Final = values
        self._left = values
        self._comparing = _MAX_COMPARING

    def take(self, values: int) -> None:
        """Count values.

        Raises:
            SerializationError: there are too many.
        """
        self._left -= values
        if self._left < 0:
            raise SerializationError(_TOO_MANY % f"{self._values:,}")

    def take_keys(self, keys: Collection[Any]) -> None:
        """Count what it costs to put keys into a dict or a set.

        Raises:
            SerializationError: too many of them share a hash.
        """
        self._comparing -= comparing(keys)
        if self._comparing < 0:
            raise SerializationError(
                "the payload holds a set or dict whose keys share their hashes; pass a list"
            )


def comparing(keys: Collection[Any]) -> int:
    """Return what comparing keys costs while a dict or set is built of them, in 10 ns."""
    if len(keys) <= _FEW or _RANDOM.issuperset(map(type, keys)):
        return 0
    shared = [count for count in Counter(map(hash, keys)).values() if count > 1]
    if not shared:
        return 0
    pairs = sum(count * (count - 1) // 2 for count in shared)
    return pairs * (_PER_KEY + max(map(_cells, keys)))


def check_decimal(value: decimal.Decimal) -> None:
    """Check that a number can be used as any other: as an int, say.

    Raises:
        SerializationError: it has too many digits, or too large an exponent.
    """
    if value.is_finite():
        if len(value.as_tuple().digits) > MAX_DIGITS or abs(value.adjusted()) > MAX_EXPONENT:
            _refuse()
    elif len(value.as_tuple().digits) > MAX_DIGITS:
        _refuse()


def check_decimal_text(length: int) -> None:
    """Check the length of a number's text before it is read.

    Raises:
        SerializationError: it is too long.
    """
    if length > _LONGEST_DECIMAL:
        _refuse()


def _cells(key: object) -> int:
    """Return how many values may be compared to compare a key."""
    kind = type(key)
    if kind is tuple or kind is frozenset:
        return sum(map(_cells, key)) + 1  # type: ignore[call-overload]
    return 1


def _refuse() -> None:
    raise SerializationError(
        f"a Decimal has more than {MAX_DIGITS:,} digits or an exponent beyond {MAX_EXPONENT:,}; "
        "pass it as a str"
    )
