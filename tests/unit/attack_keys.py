"""Ints that make CPython's dicts and sets slow though hardly any of them share a hash."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

__all__ = ["attack_keys"]

_SHIFT = 5
_DIGITS = range(1 << _SHIFT)
# How many places a table looks at before it jumps to another one.
_PLACES: dict[type, int] = {dict: 1, set: 10}
# What hashes of ints are taken modulo of: 8 ints of 64 bits share one.
_MODULUS = 2**61 - 1
_TWINS = range(8)


def attack_keys(container: type, *, bits: int, filled: int, late: int) -> list[int]:
    """Return ints that fill a path through a table, and then others that walk all along it.

    Args:
        container: dict or set.
        bits: of the size of the table, once all are in it.
        filled: how many fill the path.
        late: how many walk along it.
    """
    mask = (1 << bits) - 1
    places = _PLACES[container]
    path: dict[int, None] = {}
    starts: dict[int, int] = {}
    place = 0
    while len(path) < filled:
        starts.setdefault(place, len(starts))
        path.update(dict.fromkeys(range(place, min(place + places, mask + 1))))
        place = (5 * place + 1) & mask
    is_full = bytearray(
        all(each in path for each in range(place, place + places)) for place in range(mask + 1)
    )
    early = len(starts) // 4

    def walks(key: int, known: int, hop: int, place: int) -> Iterator[int]:
        """Yield the keys of these low bits that only come by places that are full."""
        if is_early(key, hop, place):
            yield key
        if known + _SHIFT > 60:
            return
        for digit in _DIGITS:
            longer = key | digit << known
            after = (5 * place + 1 + (longer >> _SHIFT * (hop + 1))) & mask
            if is_full[after]:
                yield from walks(longer, known + _SHIFT, hop + 1, after)

    def is_early(key: int, hop: int, place: int) -> bool:
        rest = key >> _SHIFT * hop
        while rest:
            rest >>= _SHIFT
            place = (5 * place + 1 + rest) & mask
            if not is_full[place]:
                return False
        return starts.get(place, early) < early

    found: dict[int, None] = {}
    each_start = [islice(walks(start, bits, 0, start), 50) for start in starts]
    for keys in each_start:
        for key in keys:
            found.update((key + twin * _MODULUS, None) for twin in _TWINS if key > mask)
        if len(found) >= late:
            break
    return [*path, *islice(found, late)]
