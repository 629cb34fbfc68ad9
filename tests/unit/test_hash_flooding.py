"""Keys that slow a dict or set down are refused in a short time, though their hashes differ."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import msgpack
import pydantic
import pytest

from sitq import SerializationError
from sitq.payload._stored_form import TAG, without_names
from sitq.payload._value_codec import ValueCodec
from sitq.payload.functions import TaskFunction
from sitq.payload.serialization import MsgpackSerializer
from tests.unit.attack_keys import attack_keys

serializer = MsgpackSerializer()
SET, FROZENSET, UUID = 2, 3, 8
MODULUS = 2**61 - 1


class Job(NamedTuple):
    id: uuid.UUID


@cache
def dict_keys() -> list[int]:
    return attack_keys(dict, bits=16, filled=28_000, late=9_000)


@cache
def set_keys() -> list[int]:
    return attack_keys(set, bits=17, filled=62_000, late=5_000)


@cache
def slow_dict() -> tuple[dict[int, int], float]:
    """What the keys make, and the CPU time that it takes."""
    start = time.thread_time()
    built = dict.fromkeys(dict_keys(), 1)
    return built, time.thread_time() - start


@cache
def slow_set() -> tuple[set[int], float]:
    start = time.thread_time()
    built = set(set_keys())
    return built, time.thread_time() - start


def packed_dict(keys: list[int]) -> bytes:
    return (
        b"\xdf"
        + len(keys).to_bytes(4, "big")
        + b"".join(msgpack.packb(key) + b"\1" for key in keys)
    )


def packed_set(code: int, keys: list[Any]) -> bytes:
    data: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(keys)))
    return data


def refused_within(work: Callable[[], object]) -> float:
    """Return the CPU time until keys are refused."""
    start = time.thread_time()
    with pytest.raises(SerializationError, match="share their hashes"):
        work()
    return time.thread_time() - start


def test_a_dict_of_such_keys_is_refused_in_a_part_of_the_time_that_it_takes() -> None:
    built, seconds = slow_dict()
    data = packed_dict(dict_keys())
    assert len(data) <= 1_048_576
    assert refused_within(lambda: serializer.loads(data)) < seconds / 3
    assert refused_within(lambda: serializer.dumps(built)) < seconds / 3


@pytest.mark.parametrize("code", [SET, FROZENSET])
def test_a_set_of_such_keys_is_refused_in_a_part_of_the_time_that_it_takes(code: int) -> None:
    _, seconds = slow_set()
    data = packed_set(code, set_keys())
    assert len(data) <= 1_048_576
    assert refused_within(lambda: serializer.loads(data)) < seconds / 2


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_of_such_keys_is_stored_and_read_or_refused_in_a_short_time(kind: Any) -> None:
    built, seconds = slow_set()
    value = kind(built)
    start = time.thread_time()
    # It gives its items in another order, in which they may be quick to put into another one.
    with contextlib.suppress(SerializationError):
        assert serializer.loads(serializer.dumps(value)) == value
    assert time.thread_time() - start < seconds


def test_arguments_and_results_of_such_keys_are_refused() -> None:
    def count(numbers: dict[int, int]) -> dict[int, int]:
        return numbers

    built, seconds = slow_dict()
    function = TaskFunction[dict[int, int]]("m:count", count)
    data = packed_dict(dict_keys())
    arguments = b"\x92\x91" + data + b"\x80"
    limit = seconds / 3
    assert refused_within(lambda: function.load_arguments(serializer, arguments)) < limit
    assert refused_within(lambda: function.load_result(serializer, data)) < limit
    assert refused_within(lambda: function.dump_result(serializer, built)) < limit
    # The encoder looks for the argument that it has to name.
    assert refused_within(lambda: function.dump_arguments(serializer, (built,), {})) < 2 * limit


def test_texts_of_such_keys_are_refused_where_they_are_read_as_ints() -> None:
    class Counts(pydantic.BaseModel):
        counts: dict[int, int]

    codec = ValueCodec(Counts)
    codec.load({"counts": {1: 1}})
    plain = {"counts": {str(key): 1 for key in dict_keys()}}
    assert refused_within(lambda: codec.load(plain)) < slow_dict()[1] / 2


def test_named_tuples_whose_hashes_are_equal_are_refused_before_they_are_made() -> None:
    jobs = {(TAG, ("id", uuid.UUID(int=number * MODULUS))) for number in range(2_500)}
    codec = ValueCodec(set[Job])
    limit = slow_dict()[1]
    assert refused_within(lambda: codec.load(jobs)) < limit
    assert refused_within(lambda: without_names(jobs)) < limit
    keyed = dict.fromkeys(jobs)
    assert refused_within(lambda: without_names(keyed)) < limit


def test_one_payload_has_one_limit_for_all_of_its_sets() -> None:
    numbers = [uuid.UUID(int=number * MODULUS).bytes for number in range(1_001)]
    one = msgpack.packb([msgpack.ExtType(UUID, number) for number in numbers])
    data = msgpack.packb([msgpack.ExtType(SET, one)] * 7)
    assert refused_within(lambda: serializer.loads(data)) < slow_dict()[1] / 3


LARGE = random.Random(1)


@pytest.mark.parametrize(
    "numbers",
    [
        range(100_000),
        range(0, 100_000 << 40, 1 << 40),
        [LARGE.getrandbits(63) for _ in range(100_000)],
    ],
    ids=["consecutive", "multiples", "random"],
)
def test_ints_that_were_not_chosen_are_carried_however_many(numbers: Any) -> None:
    found = set(numbers)
    assert serializer.loads(serializer.dumps(found)) == found
    assert serializer.loads(serializer.dumps(frozenset(found))) == found
    large = MsgpackSerializer(max_bytes=4_000_000, max_values=400_000)
    pairs = dict.fromkeys(numbers, 1)
    assert large.loads(large.dumps(pairs)) == pairs
