"""The fakes of `sitq.testing` do what tests build on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest

import sitq.testing
from sitq.administration import AdminBackend
from sitq.backends.memory import MemoryBackend
from sitq.errors import BackendBusyError, BackendError, ValidationError
from sitq.ids import new_task_id
from sitq.models import Lease, Task
from sitq.protocols import Backend
from sitq.testing import AdminBackendConformance, BackendConformance, FakeClock, FaultyBackend
from sitq.testing._conformance._admin_calls import ADMIN_CALLS
from sitq.testing._conformance._admin_store import make_report
from sitq.testing._conformance._opening import CALLS
from sitq.testing._faults import OPERATIONS

BUSY = BackendBusyError("locked")
ANY_CALL: dict[str, Any] = {**CALLS, **ADMIN_CALLS}
# They refuse an unknown task.
OF_KNOWN = {"cancel", "get_attempts", "load_task"}


class TestFaultyBackendWithoutFaults(BackendConformance):
    """With nothing to fail it is a backend like the one that it wraps."""

    def make_backend(self, clock: FakeClock) -> Backend:
        return FaultyBackend(MemoryBackend(clock=clock))


class TestFaultyAdministration(AdminBackendConformance):
    """It can be administered as the one that it wraps."""

    def make_backend(self, clock: FakeClock) -> Backend:
        return FaultyBackend(MemoryBackend(clock=clock))


class Plain:
    """A store that cannot be administered."""

    def __init__(self) -> None:
        memory = MemoryBackend()
        for name in (*vars(Backend), "clock"):
            if not name.startswith("_"):
                setattr(self, name, getattr(memory, name))


def test_a_faulty_backend_is_administered_if_the_wrapped_one_is() -> None:
    plain: Any = Plain()
    assert isinstance(FaultyBackend(MemoryBackend()), AdminBackend)
    assert not isinstance(FaultyBackend(plain), AdminBackend)


async def woken(clock: FakeClock, sleeps: list[float], move: Callable[[], object]) -> list[float]:
    """Which of some sleeps have ended once the clock was moved."""
    ended: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        ended.append(seconds)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for seconds in sleeps:
                group.start_soon(sleep, seconds)
            await anyio.wait_all_tasks_blocked()
            move()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    return sorted(ended)


def test_a_clock_stands_still() -> None:
    clock = FakeClock()
    assert (clock.now(), clock.monotonic()) == (clock.now(), clock.monotonic())
    assert clock.now().tzinfo is UTC


def test_a_clock_starts_where_it_is_set() -> None:
    start = datetime(2024, 2, 29, 23, tzinfo=timezone(timedelta(hours=-5)))
    assert FakeClock(start).now() == start
    assert FakeClock(start).now().tzinfo is UTC
    with pytest.raises(ValidationError, match="start"):
        FakeClock(start.replace(tzinfo=None))


def test_advancing_moves_both_times_and_jumping_one() -> None:
    clock = FakeClock()
    start, elapsed = clock.now(), clock.monotonic()
    clock.advance(1.5)
    assert clock.now() - start == timedelta(seconds=1.5)
    assert clock.monotonic() - elapsed == 1.5
    clock.jump(-3600)
    assert clock.now() - start == timedelta(seconds=1.5 - 3600)
    assert clock.monotonic() - elapsed == 1.5
    with pytest.raises(ValidationError, match="jump"):
        clock.advance(-1)


@pytest.mark.anyio
async def test_advancing_ends_the_sleeps_that_are_over() -> None:
    clock = FakeClock()
    assert await woken(clock, [0.0, 0.3, 0.5], lambda: clock.advance(0.3)) == [0.0, 0.3]


@pytest.mark.anyio
async def test_steps_add_up_exactly() -> None:
    clock = FakeClock()

    def move() -> None:
        for _ in range(3):
            clock.advance(0.1)

    assert await woken(clock, [0.3, 0.300001], move) == [0.3]


@pytest.mark.anyio
async def test_jumping_ends_no_sleep() -> None:
    clock = FakeClock()
    assert await woken(clock, [0.5], lambda: clock.jump(100)) == []


@pytest.mark.anyio
async def test_a_sleep_ends_by_a_move_in_another_thread() -> None:
    clock = FakeClock()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(clock.sleep, 5)
            await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(clock.advance, 5)


def some_task() -> Task:
    return Task(id=new_task_id(), function="tests:nothing", payload=b"")


def keep(backend: AdminBackend, operation: str) -> None:
    keeper = backend.lease_keeper()
    if operation == "renew":
        keeper.renew([], 5)
    elif operation == "report":
        keeper.report(make_report(backend.clock.now()))
    else:
        keeper.deregister("worker")


async def call(backend: FaultyBackend, operation: str) -> None:
    match operation:
        case "open":
            await backend.open()
        case "close":
            await backend.close()
        case "renew" | "report" | "deregister":
            await anyio.to_thread.run_sync(keep, backend, operation)
        case _:
            await ANY_CALL[operation](backend, Lease(new_task_id(), 1))


@pytest.mark.anyio
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_named_operation_fails_so_many_times(operation: str) -> None:
    backend = FaultyBackend(MemoryBackend())
    await backend.open()
    backend.fail(operation, 2, error=BUSY)
    for other in OPERATIONS:
        if other not in {operation, *OF_KNOWN, "open", "close"}:
            await call(backend, other)
    for _ in range(2):
        with pytest.raises(BackendBusyError):
            await call(backend, operation)
    if operation not in OF_KNOWN:
        await call(backend, operation)


@pytest.mark.anyio
@pytest.mark.parametrize("after", [False, True])
async def test_a_fault_comes_before_or_after_the_work(after: bool) -> None:
    backend = FaultyBackend(MemoryBackend())
    await backend.open()
    task = some_task()
    backend.fail("enqueue", error=BUSY, after=after)
    with pytest.raises(BackendBusyError):
        await backend.enqueue([task])
    (info,) = await backend.get_tasks([task.id])
    assert (info is not None) is after


@pytest.mark.anyio
async def test_faults_come_in_the_order_of_asking_until_healed() -> None:
    backend = FaultyBackend(MemoryBackend())
    await backend.open()
    backend.fail("sweep", error=BUSY)
    backend.fail("sweep", times=5, error=BackendError("gone"))
    with pytest.raises(BackendBusyError):
        await backend.sweep(3)
    with pytest.raises(BackendError, match="gone"):
        await backend.sweep(3)
    backend.heal()
    await backend.sweep(3)


def test_a_fault_of_no_operation_is_refused() -> None:
    backend = FaultyBackend(MemoryBackend())
    with pytest.raises(ValidationError, match="renew"):
        backend.fail("listen", error=BUSY)
    with pytest.raises(ValidationError, match="times"):
        backend.fail("sweep", 0, error=BUSY)


def test_the_fakes_need_no_pytest() -> None:
    program = "import sys, sitq.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_there_is_nothing_else_in_the_module() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = sitq.testing.nothing_of_that_name
    assert sorted(sitq.testing.__all__) == sitq.testing.__all__
