"""Options are checked where they are given, and laid over a function's own."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from sitq import RetryPolicy, TaskQueue, ValidationError, call
from sitq.backends.memory import MemoryBackend
from tests.unit.queue_support import add, mail, spied_queue

LATER = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def queue() -> TaskQueue:
    return TaskQueue(MemoryBackend())


REFUSED: list[tuple[str, Any, str]] = [
    ("eta", datetime(2031, 1, 1), "datetime.now(UTC)"),
    ("eta", "2031-01-01", "got str"),
    ("eta", 3, "got int"),
    ("eta", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "years 1 to 9999"),
    ("expires_at", datetime(2031, 1, 1), "replace(tzinfo=...)"),
    ("delay", True, "got bool"),
    ("delay", -1, "got int"),
    ("delay", -0.001, "got float"),
    ("delay", math.nan, "got float"),
    ("delay", math.inf, "got float"),
    ("delay", timedelta(seconds=-1), "seconds"),
    ("delay", timedelta.max, "ten years"),
    ("delay", 10**400, "ten years"),
    ("delay", "5", "got str"),
    ("queue", "", "got str"),
    ("queue", "a b", "got str"),
    ("queue", "a\n", "got str"),
    ("queue", "q" * 129, "got str"),
    ("queue", b"mail", "got bytes"),
    ("priority", 101, "-100 to 100"),
    ("priority", -101, "-100 to 100"),
    ("priority", True, "got bool"),
    ("priority", 1.0, "got float"),
    ("timeout", 0, "more than 0"),
    ("timeout", True, "got bool"),
    ("timeout", math.nan, "got float"),
    ("timeout", timedelta(seconds=1), "got timedelta"),
    ("result_ttl", -1, "got int"),
    ("result_ttl", "1", "got str"),
    ("retry", 3, "RetryPolicy"),
    ("unique_key", "", "got str"),
    ("unique_key", "k" * 257, "256"),
    ("unique_key", "a\x00b", "control"),
    ("unique_key", "\udc80", "got str"),
    ("unique_key", 7, "got int"),
    ("unique_until", "never", "start"),
    ("unique_until", 7, "got int"),
    ("headers", [("a", "b")], "got list"),
    ("headers", {"a": 1}, "got int"),
    ("headers", {1: "a"}, "got int"),
    ("headers", {"a": "\ud800"}, "no such text"),
    ("headers", {str(n): "" for n in range(65)}, "65 entries"),
    ("headers", {"a": "é" * 4096}, "8,193 bytes"),
]


@pytest.mark.parametrize(("name", "value", "hint"), REFUSED)
def test_a_bad_option_is_refused_at_once_with_its_name_and_type(
    name: str, value: Any, hint: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        queue().options(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert hint in text
    assert "(got " in text


class BrokenZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        raise RuntimeError("no such place")

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


@pytest.mark.parametrize("name", ["eta", "expires_at"])
def test_a_time_zone_that_raises_is_to_blame_by_name(name: str) -> None:
    moment: Any = datetime(2031, 1, 1, tzinfo=BrokenZone())
    with pytest.raises(ValidationError, match=rf"{name}: .*BrokenZone.* raised RuntimeError"):
        queue().options(**{name: moment})


ACCEPTED: list[tuple[str, Any]] = [
    ("delay", 0),
    ("delay", 0.5),
    ("delay", timedelta(0)),
    ("queue", "A-z_0.9:/"),
    ("queue", "q" * 128),
    ("priority", -100),
    ("priority", 100),
    ("timeout", 0.001),
    ("result_ttl", 0),
    ("unique_key", "k" * 256),
    ("headers", {str(n): "" for n in range(64)}),
    ("headers", {"a": "b" * 8191}),
]


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_the_last_good_value_of_an_option_is_accepted(name: str, value: Any) -> None:
    assert "=" in repr(queue().options(**{name: value}))


def test_an_eta_and_a_delay_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="eta, delay: give one"):
        queue().options(eta=LATER, delay=1)


def test_a_key_until_the_start_needs_a_key() -> None:
    with pytest.raises(ValidationError, match="unique_until: give a unique_key too"):
        queue().options(unique_until="start")
    queue().options(unique_until="end")


def test_an_expiry_must_be_later_than_the_eta() -> None:
    with pytest.raises(ValidationError, match="expires_at: must be later"):
        queue().options(eta=LATER, expires_at=LATER)
    queue().options(eta=LATER, expires_at=LATER + timedelta(microseconds=1))


def test_the_repr_shows_options_but_neither_key_nor_headers() -> None:
    text = repr(queue().options(priority=3, unique_key="secret-1", headers={"token": "secret-2"}))
    assert "priority=3" in text
    assert "secret" not in text
    assert "token" not in text


@pytest.mark.anyio
async def test_every_option_reaches_the_store() -> None:
    policy = RetryPolicy(max_attempts=9)
    async with spied_queue() as (tasks, backend, _):
        bound = tasks.options(
            eta=LATER.astimezone(timezone(timedelta(hours=5))),
            queue="slow",
            priority=-3,
            timeout=2,
            retry=policy,
            unique_key="one",
            unique_until="start",
            expires_at=LATER + timedelta(days=1),
            result_ttl=5,
            headers={"trace": "1"},
        )
        await bound.enqueue(add, 1, 2)
        stored = backend.stored[0]
    assert stored.eta == LATER
    assert stored.eta is not None
    assert stored.eta.tzinfo is UTC
    assert stored.expires_at == LATER + timedelta(days=1)
    assert (stored.queue, stored.priority, stored.timeout) == ("slow", -3, 2.0)
    assert (stored.retry, stored.unique_key, stored.result_ttl) == (policy, "one", 5.0)
    assert stored.unique_until == "start"
    assert dict(stored.headers) == {"trace": "1"}


@pytest.mark.anyio
async def test_headers_are_taken_when_the_options_are_made() -> None:
    async with spied_queue() as (tasks, backend, _):
        headers = {"a": "1"}
        bound = tasks.options(headers=headers)
        headers["a"] = "2"
        await bound.enqueue(add, 1, 2)
        assert dict(backend.stored[0].headers) == {"a": "1"}


@pytest.mark.anyio
async def test_a_delay_counts_from_each_enqueue_by_the_stores_clock() -> None:
    async with spied_queue() as (tasks, backend, clock):
        bound = tasks.options(delay=timedelta(seconds=90))
        start = clock.now()
        await bound.enqueue(add, 1, 2)
        clock.jump(10)
        await bound.enqueue(add, 1, 2)
        etas = [stored.eta for stored in backend.stored]
    assert etas == [start + timedelta(seconds=90), start + timedelta(seconds=100)]


@pytest.mark.anyio
async def test_a_delay_past_the_expiry_is_refused_and_nothing_is_stored() -> None:
    async with spied_queue() as (tasks, backend, clock):
        end = clock.now() + timedelta(seconds=5)
        with pytest.raises(ValidationError, match="expires_at: must be later"):
            await tasks.options(delay=5, expires_at=end).enqueue(add, 1, 2)
        assert backend.stored == []
        await tasks.options(delay=4.999, expires_at=end).enqueue(add, 1, 2)
        assert len(backend.stored) == 1


@pytest.mark.anyio
async def test_a_delay_beyond_the_calendar_is_refused() -> None:
    async with spied_queue() as (tasks, backend, clock):
        clock.jump((datetime(9999, 12, 31, tzinfo=UTC) - clock.now()).total_seconds())
        with pytest.raises(ValidationError, match="delay: "):
            await tasks.options(delay=86400).enqueue(add, 1, 2)
        assert backend.stored == []


@pytest.mark.anyio
async def test_options_come_before_the_functions_defaults_and_those_before_sitqs() -> None:
    async with spied_queue() as (tasks, backend, _):
        await tasks.enqueue(add, 1, 2)
        await tasks.enqueue(mail, "a")
        await tasks.options(priority=0, queue="urgent").enqueue(mail, "a")
        await tasks.options(timeout=1).enqueue_many([call(mail, "a")])
        seen = [(t.queue, t.priority, t.timeout, t.result_ttl) for t in backend.stored]
    assert seen == [
        ("default", 0, None, 7 * 86400.0),
        ("mail", 7, 30.0, 60.0),
        ("urgent", 0, 30.0, 60.0),
        ("mail", 7, 1.0, 60.0),
    ]


@pytest.mark.anyio
async def test_calls_in_turn_under_different_options_keep_their_own() -> None:
    async with spied_queue() as (queue, store, _):
        urgent = queue.options(priority=5, headers={"a": "b"})
        for number in range(3):
            await queue.enqueue(add, number, 1)
            await urgent.enqueue(add, number, 2)
            await queue.enqueue(mail, "you")
            await queue.enqueue(add, number, 3)
        assert [task.priority for task in store.stored] == [0, 5, 7, 0] * 3
        assert [task.queue for task in store.stored] == [
            "default",
            "default",
            "mail",
            "default",
        ] * 3
        assert [dict(task.headers) for task in store.stored] == [{}, {"a": "b"}, {}, {}] * 3
        assert len({task.id for task in store.stored}) == 12
        assert len({task.payload for task in store.stored}) == 10
        copied = store.stored[-1].model_copy(update={"priority": 1})
        assert (copied.priority, store.stored[-1].priority) == (1, 0)
        assert copied == store.stored[-1].model_validate(copied.model_dump())
