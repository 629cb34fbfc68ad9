"""An eta is a moment, whatever time zone it is given in: nothing starts before, at it it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sitq import TaskId, TaskQueue
from sitq.models import ReservedTask
from sitq.protocols import Backend
from sitq.testing import FakeClock
from tests.properties.stores import Maker, memory, private_sqlite

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")

# Half hours, whole days left out, offsets of seconds long ago, clocks that go back in spring.
_zones = st.sampled_from(
    [
        "UTC",
        "Africa/Casablanca",
        "America/New_York",
        "America/St_Johns",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "Europe/Berlin",
        "Europe/Dublin",
        "Pacific/Apia",
    ]
).map(ZoneInfo)
_offsets = st.timedeltas(-DAY + TICK, DAY - TICK).map(timezone)
zones: st.SearchStrategy[tzinfo] = st.one_of(_zones, _offsets)
# Moments that the clock shows twice (fold 0 and 1) or never are among them.
moments = st.datetimes(
    datetime(1850, 1, 1), datetime(2400, 1, 1), timezones=zones, allow_imaginary=True
)

# The fixture makes desks; each example asks it for a fresh one.
fresh_desks = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def work() -> None:
    """What is enqueued; nothing here runs it."""


class Desk:
    """A queue and its store on a clock of their own, used from plain code."""

    def __init__(self, portal: BlockingPortal, maker: Maker, start: datetime) -> None:
        self._portal = portal
        self.clock = FakeClock(start)
        self._backend: Backend = maker(self.clock, Path()).make()
        self._queue = TaskQueue(self._backend)

    @contextmanager
    def open(self) -> Iterator[None]:
        self._portal.call(self._queue.connect)
        try:
            yield
        finally:
            self._portal.call(self._queue.close)

    def enqueue(self, eta: datetime) -> TaskId[None]:
        return self._portal.call(self._queue.options(eta=eta).enqueue, work)

    def reserve(self) -> tuple[tuple[ReservedTask, ...], float | None]:
        return self._portal.call(self._backend.reserve, "worker", ("default",), 10, 30.0)

    def go_to(self, moment: datetime) -> None:
        """Exactly: seconds as one float would be a microsecond off over centuries."""
        way = moment - self.clock.now()
        for seconds in (way.days * 86400.0, float(way.seconds), way.microseconds / 1e6):
            self.clock.jump(seconds)


@pytest.fixture(params=[memory, private_sqlite], ids=["memory", "sqlite"])
def desk(
    request: pytest.FixtureRequest, anyio_backend: str
) -> Iterator[Callable[[datetime], Desk]]:
    """Makes a desk at which it is a given moment."""
    with start_blocking_portal(anyio_backend) as portal:
        yield lambda start: Desk(portal, request.param, start)


@fresh_desks
@given(eta=moments)
@example(eta=datetime(2031, 3, 30, 2, 30, tzinfo=BERLIN))  # never shown
@example(eta=datetime(2031, 10, 26, 2, 30, tzinfo=BERLIN, fold=0))
@example(eta=datetime(2031, 10, 26, 2, 30, tzinfo=BERLIN, fold=1))
@example(eta=datetime(2031, 4, 6, 1, 45, tzinfo=LORD_HOWE, fold=1))  # half an hour back
def test_a_task_is_reserved_at_its_eta_and_not_a_microsecond_before(
    desk: Callable[[datetime], Desk], eta: datetime
) -> None:
    moment = eta.astimezone(UTC)
    here = desk(moment - DAY)
    with here.open():
        task_id = here.enqueue(eta)
        assert here.reserve() == ((), DAY.total_seconds())
        here.clock.advance((DAY - TICK).total_seconds())
        assert here.reserve() == ((), 1e-6)
        here.clock.advance(1e-6)
        assert here.clock.now() == moment
        (task,), wait = here.reserve()
        assert (task.id, task.eta, task.eta.tzinfo, wait) == (task_id, moment, UTC, None)


@fresh_desks
@given(eta=moments, zone=zones)
def test_one_moment_in_two_zones_is_one_eta(
    desk: Callable[[datetime], Desk], eta: datetime, zone: tzinfo
) -> None:
    """The tasks are due together, in the order in which they were enqueued."""
    moment = eta.astimezone(UTC)
    here = desk(moment - TICK)
    with here.open():
        enqueued = [here.enqueue(each) for each in (eta, moment.astimezone(zone), moment)]
        assert here.reserve() == ((), 1e-6)
        here.clock.advance(1e-6)
        tasks, _ = here.reserve()
        assert [task.id for task in tasks] == enqueued
        assert {task.eta for task in tasks} == {moment}


@fresh_desks
@given(etas=st.lists(moments, min_size=2, max_size=5))
def test_tasks_become_due_in_the_order_of_their_moments(
    desk: Callable[[datetime], Desk], etas: list[datetime]
) -> None:
    """Not in the order of what the clocks on their walls show."""
    utc = [eta.astimezone(UTC) for eta in etas]
    here = desk(min(utc))
    with here.open():
        enqueued = [here.enqueue(eta) for eta in etas]
        here.clock.jump(-1.0)  # back before all of them
        assert here.reserve()[0] == ()
        here.go_to(max(utc))
        tasks, wait = here.reserve()
        expected = sorted(range(len(etas)), key=lambda number: (utc[number], number))
        assert [task.id for task in tasks] == [enqueued[number] for number in expected]
        assert wait is None


@pytest.mark.parametrize(
    ("zone", "shown", "apart"),
    [
        ("Europe/Berlin", datetime(2031, 10, 26, 2, 30), 3600.0),
        ("Europe/Dublin", datetime(2031, 10, 26, 1, 30), 3600.0),
        ("America/New_York", datetime(2031, 11, 2, 1, 30), 3600.0),
        ("Australia/Lord_Howe", datetime(2031, 4, 6, 1, 45), 1800.0),
    ],
)
def test_what_a_clock_shows_twice_is_two_moments(
    desk: Callable[[datetime], Desk], zone: str, shown: datetime, apart: float
) -> None:
    """The second comes later, by as much as the clock is set back."""
    first, second = (shown.replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1))
    here = desk(first.astimezone(UTC))
    with here.open():
        later, sooner = here.enqueue(second), here.enqueue(first)
        tasks, wait = here.reserve()
        assert ([task.id for task in tasks], wait) == ([sooner], apart)
        here.clock.advance(apart)
        assert [task.id for task in here.reserve()[0]] == [later]
