"""Task ids: UUIDv7, in the order of their making, whatever happens at the same time."""

from __future__ import annotations

import os
import threading
import time
import uuid
from itertools import pairwise

import pydantic
import pytest

from sitq import ids as ids_module
from sitq.ids import TaskId, new_task_id, new_task_ids


def test_an_id_is_a_uuid_of_version_7_with_the_present_time() -> None:
    before = time.time_ns() // 1_000_000
    parsed = uuid.UUID(new_task_id())
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_sort_in_the_order_of_their_making() -> None:
    ids = [new_task_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_ids_of_a_batch_sort_among_those_made_one_by_one() -> None:
    ids: list[str] = []
    for size in (1, 2, 1000, 0, 3):
        ids += [new_task_id(), *new_task_ids(size)]
    assert ids == sorted(set(ids))
    assert all(type(each) is TaskId for each in ids)
    assert {uuid.UUID(each).version for each in ids} == {7}


def test_a_batch_goes_on_where_the_last_group_has_no_more_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock stands still, so that all ids come from one counter."""
    made = ids_module._Uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    ids = [made.next(), *made.many(70_000), made.next(), *made.many(70_000)]
    assert ids == sorted(set(ids))
    numbers = [int(each.replace("-", "")[16:24], 16) for each in ids]
    assert {(after - before) % 2**30 for before, after in pairwise(numbers)} == {1}


def test_threads_never_get_the_same_id() -> None:
    ids: list[str] = []

    def make() -> None:
        for _ in range(50):
            ids.extend([new_task_id() for _ in range(50)])
            ids.extend(new_task_ids(50))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 20_000


def test_a_clock_that_goes_back_does_not_turn_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_task_id()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert new_task_id() > first


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads of other tests, and a fork
def test_a_forked_child_makes_ids_of_its_own() -> None:
    new_task_id()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, new_task_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert uuid.UUID(theirs).version == 7
    assert theirs != new_task_id()
    assert theirs[-12:] != new_task_id()[-12:]


@pytest.mark.parametrize(
    "text", ["", "7", "0190F5E2-7C3A-7BBB-8000-0123456789AB", "x" * 36, 7, None, b"x"]
)
def test_what_is_no_id_is_refused(text: object) -> None:
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(TaskId[int]).validate_python(text)
