"""Limit on the cost of building dicts and sets, checked before one is built.

Decoding runs on the event loop with the interpreter's lock held. A payload that is cheap to send
and expensive to decode would block all other tasks and their heartbeats.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sitq.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["KeyBudget"]

# Python adds a secret to the hashes of these, but not with PYTHONHASHSEED=0.
_RANDOM: Final = frozenset({str, bytes}) if sys.flags.hash_randomization else frozenset[type]()
# Up to this many keys compare quickly, whatever their hashes are.
_FEW: Final = 4
# The limit for comparing keys that share a hash, in units of about 10 ns.
_MAX_COMPARING: Final = 420_000
_PER_KEY: Final = 20
# Keys whose hashes differ can still collide in every slot that a table probes. Building a
# dict or set of more keys than this is timed: the milliseconds for all, and those for each key.
_MAX_UNTIMED: Final = 1_000
_BUILDING: Final = 0.010
_BUILDING_PER_KEY: Final = 0.000_002
_BATCH: Final = 128


class KeyBudget:
    """Limits the time that the dicts and sets of one payload take to build.

    It is the CPU time of the thread: a busy machine does not cause refusals.
    """

    __slots__ = ("_comparing", "_seconds")

    def __init__(self) -> None:
        self._comparing = _MAX_COMPARING
        self._seconds = _BUILDING

    def take(
        self, keys: Collection[Any], container: type, convert: Callable[[Any], Any] | None = None
    ) -> None:
        """Count what it costs to put keys into a dict or a set.

        Args:
            keys: the keys, in the order of insertion.
            container: dict or set.
            convert: makes the key to count of each; ``None``: it does not count.

        Raises:
            SerializationError: it takes too long.
        """
        if len(keys) <= _FEW or (convert is None and _RANDOM.issuperset(map(type, keys))):
            return
        # Converted one by one: this costs time too.
        made = iter(keys) if convert is None else filter(_is_key, map(convert, keys))
        if len(keys) > _MAX_UNTIMED:
            self._build(made, container)
        else:
            self._compare(made)
        if self._comparing < 0 or self._seconds < 0:
            raise SerializationError(
                "the payload holds a set or dict whose keys share their hashes; pass a list"
            )

    def _build(self, keys: Iterator[Any], container: type) -> None:
        """Build a dict or set, some keys at a time, until the time is spent.

        A dict and a set probe in different ways, so the time of one says nothing about the other.
        """
        add: Callable[[Any], object]
        add = set[Any]().add
        if container is dict:
            add = dict[Any, None]().setdefault
        slowest = 0.0
        while self._seconds >= 0 and (batch := [*islice(keys, _BATCH)]):
            began = time.thread_time()
            any(map(add, batch))  # both functions return None
            spent = time.thread_time() - began
            # The slowest batch does not count: the garbage collector may have run during it.
            counted, slowest = min(spent, slowest), max(spent, slowest)
            self._seconds += _BUILDING_PER_KEY * len(batch) - counted

    def _compare(self, made: Iterator[Any]) -> None:
        """Compare the keys that share a hash, until the budget is spent."""
        keys = [*made]
        if len({*map(hash, keys)}) == len(keys):
            return
        by_hash: dict[int, list[Any]] = {}
        for key in keys:
            same = by_hash.setdefault(hash(key), [])
            if len(same) > 1:
                self._comparing -= (len(same) - 1) * (_PER_KEY + _cells(key))
                if self._comparing < 0:
                    return
            if key not in same:
                same.append(key)


def _is_key(key: object) -> bool:
    return key is not None


def _cells(key: object) -> int:
    """Return how many values may be compared to compare a key."""
    kind = type(key)
    if kind is tuple or kind is frozenset:
        return sum(map(_cells, key)) + 1  # type: ignore[call-overload]
    return 1
