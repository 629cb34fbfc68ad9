"""Limits on the cost of decoding, checked before a value is built.

Decoding runs on the event loop with the interpreter's lock held. A payload that is cheap to send
and expensive to decode would block all other tasks and their heartbeats.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sitq.errors import SerializationError

if TYPE_CHECKING:
    import decimal
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "MAX_DIGITS",
    "MAX_EXPONENT",
    "MAX_UNTIMED",
    "DecodingBudget",
    "KeyTime",
    "check_decimal",
    "check_decimal_text",
    "check_keys",
]

MAX_DIGITS: Final = 1000
MAX_EXPONENT: Final = 1000
# Beside the digits: a sign, a point and an exponent; or NaN.
_LONGEST_DECIMAL: Final = MAX_DIGITS + 32
# Python adds a secret to the hashes of these, but not with PYTHONHASHSEED=0.
_RANDOM: Final = frozenset({str, bytes}) if sys.flags.hash_randomization else frozenset[type]()
# Up to this many keys compare quickly, whatever their hashes are.
_FEW: Final = 4
# The limit for comparing keys that share a hash, in units of about 10 ns.
_MAX_COMPARING: Final = 1_000_000
_PER_KEY: Final = 20
# Keys whose hashes differ can still collide in every slot that a table probes. Building a
# dict or set of more keys than this is timed: the milliseconds for all, and those for each key.
MAX_UNTIMED: Final = 1_000
_BUILDING: Final = 0.010
_BUILDING_PER_KEY: Final = 0.000_002
_BATCH: Final = 128
_COLLIDING: Final = "the payload holds a set or dict whose keys share their hashes; pass a list"
# The error of `DecodingBudget.take`.
_TOO_MANY: Final = (
    "the payload holds more than %s values (a container or a value with a type of its own counts "
    "as several); store the data elsewhere and pass where it is, or pass bytes"
)


class DecodingBudget:
    """Counts the values of one payload against a limit.

    Args:
        values: how many values the payload may hold.
    """

    __slots__ = ("_comparing", "_key_time", "_left", "_values")

    def __init__(self, values: int) -> None:
        self._values: Final = values
        self._left = values
        self._comparing = _MAX_COMPARING
        self._key_time: Final = KeyTime()

    def take(self, values: int) -> None:
        """Count values.

        Raises:
            SerializationError: there are too many.
        """
        self._left -= values
        if self._left < 0:
            raise SerializationError(_TOO_MANY % f"{self._values:,}")

    def take_keys(self, keys: Sequence[Any], container: type) -> None:
        """Count what it costs to put keys into a dict or a set.

        Args:
            keys: the keys, in the order of insertion.
            container: dict or set.

        Raises:
            SerializationError: it takes too long.
        """
        if len(keys) <= _FEW or _RANDOM.issuperset(map(type, keys)):
            return
        if len(keys) > MAX_UNTIMED:
            fits = self._key_time.fits(keys, container)
        else:
            self._comparing -= _comparing(keys)
            fits = self._comparing >= 0
        if not fits:
            raise SerializationError(_COLLIDING)


class KeyTime:
    """Counts the time that the dicts and sets of one payload take to build.

    It is the CPU time of the thread: a busy machine does not cause refusals.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _BUILDING

    def fits(self, keys: Iterable[Any], container: type) -> bool:
        """Return whether a dict or set is built of keys in the time that is left.

        It is built here, some keys at a time, until the time is spent. A dict and a set probe in
        different ways, so the time of one says nothing about the other.

        Args:
            keys: the keys, in the order of insertion.
            container: dict or set.
        """
        add: Callable[[Any], object]
        add = set[Any]().add
        if container is dict:
            add = dict[Any, None]().setdefault
        slowest = 0.0
        waiting = iter(keys)
        while batch := [*islice(waiting, _BATCH)]:
            began = time.thread_time()
            any(map(add, batch))  # both functions return None
            spent = time.thread_time() - began
            # The slowest batch does not count: the garbage collector may have run during it.
            counted, slowest = min(spent, slowest), max(spent, slowest)
            self._left += _BUILDING_PER_KEY * len(batch) - counted
            if self._left < 0:
                return False
        return True


def check_keys(keys: Sequence[Any], container: type) -> None:
    """Check that a dict or set can be built of keys in a short time; see `KeyTime.fits`.

    Raises:
        SerializationError: it cannot.
    """
    if len(keys) > _FEW and not KeyTime().fits(keys, container):
        raise SerializationError(_COLLIDING)


def _comparing(keys: Sequence[Any]) -> int:
    """Return the cost of comparing keys while a dict or set is built of them, in 10 ns."""
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
