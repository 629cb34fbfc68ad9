"""Who is cancelled while sitq writes in the user's transaction finds it as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sitq import TaskQueue, TaskStatus
from sitq.backends._transactions import _cancellation
from sitq.backends._transactions._cancellation import CancellationGuard
from sitq.transactions import TransactionalBackend
from tests.transactions.kinds import AWAITED, AWAITED_POSTGRES, Own, opened
from tests.transactions.places import Place
from tests.unit.queue_support import add

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),  # these drivers know no other
]

Call = Callable[[], Coroutine[Any, Any, object]]

# Turns of the loop after which the call is cancelled; the last are more than a call takes.
TURNS = [*range(12), *(round(1.5**power) for power in range(7, 24)), 10**6]


async def in_scope(call: Call, turns: int) -> bool:
    """Cancel a call as anyio does; tell if it returned all the same."""
    returned = False
    scope = anyio.CancelScope()

    async def run() -> None:
        nonlocal returned
        with scope:
            await call()
            returned = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await _turn(turns, lambda: returned)
        scope.cancel()
    return returned


async def as_task(call: Call, turns: int) -> bool:
    """Cancel a call as asyncio does, twice; tell if it returned all the same."""
    task = asyncio.create_task(call())
    await _turn(turns, task.done)
    task.cancel()
    await checkpoint()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
        return True
    return False


async def _turn(turns: int, is_enough: Callable[[], bool]) -> None:
    for _ in range(turns):
        if is_enough():
            return
        await checkpoint()


@pytest.fixture(params=[in_scope, as_task])
def cancelled(request: pytest.FixtureRequest) -> Callable[[Call, int], Awaitable[bool]]:
    """A way to be cancelled."""
    way: Callable[[Call, int], Awaitable[bool]] = request.param
    return way


@pytest.mark.parametrize("kind", [*AWAITED, *AWAITED_POSTGRES])
class TestOfAnyKind:
    async def test_a_task_is_stored_if_and_only_if_the_call_returned(
        self,
        queue: TaskQueue,
        place: Place,
        own: Own,
        cancelled: Callable[[Call, int], Awaitable[bool]],
    ) -> None:
        expected = []
        for turns in TURNS:
            if turns:
                await own.begin_again()
            await own.write(f"{turns:05}")
            bound = queue.bind(own.given).options(unique_key=f"{turns:05}")
            if await cancelled(partial(bound.enqueue, add, 1, 2), turns):
                expected.append(f"{turns:05}")
            await own.commit()
        keys = place.look("SELECT unique_key FROM tasks ORDER BY unique_key")
        assert [key for (key,) in keys] == sorted(set(expected))
        assert place.notes == sorted(f"{turns:05}" for turns in TURNS)
        assert 0 < len(expected) < len(TURNS)

    async def test_a_task_has_succeeded_if_and_only_if_the_call_returned(
        self,
        queue: TaskQueue,
        place: Place,
        own: Own,
        cancelled: Callable[[Call, int], Awaitable[bool]],
    ) -> None:
        backend = place.backend()
        assert isinstance(backend, TransactionalBackend)
        await backend.open()
        outcomes = []
        for turns in TURNS:
            task_id = await queue.enqueue(add, 1, 2)
            (reserved,) = (await backend.reserve("w", ["default"], 1, 99)).tasks
            if turns:
                await own.begin_again()
            await own.write("before")
            joined = backend.join(own.given)
            returned = await cancelled(partial(joined.complete, reserved.lease, b"3"), turns)
            await own.commit()
            status = (await queue.get_task(task_id)).status
            assert status is (TaskStatus.SUCCESS if returned else TaskStatus.IN_PROGRESS)
            outcomes.append(returned)
        await backend.close()
        assert set(outcomes) == {True, False}


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg AsyncConnection"])
async def test_a_wait_for_another_transaction_can_be_cancelled(
    queue: TaskQueue,
    place: Place,
    own: Own,
    kind: str,
    cancelled: Callable[[Call, int], Awaitable[bool]],
) -> None:
    async with opened(kind, place) as other:
        await queue.bind(other.given).options(unique_key="held").enqueue(add, 1, 2)
        await own.write("before")
        bound = queue.bind(own.given)
        with anyio.fail_after(30):
            call = bound.options(unique_key="held").enqueue
            assert not await cancelled(partial(call, add, 1, 2), 3000)
            await bound.options(unique_key="free").enqueue(add, 1, 2)
        await own.write("after")
        await own.commit()
    assert place.look("SELECT unique_key FROM tasks") == [("free",)]
    assert place.notes == ["after", "before"]


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg AsyncConnection"])
async def test_calls_that_share_a_connection_come_one_after_the_other(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    """So that one that is cancelled takes nothing of the others along."""
    keys: list[str] = []

    async def enqueue(number: int) -> None:
        key = f"{number:02}"
        with anyio.move_on_after(0 if number % 2 else 30):
            await queue.bind(own.given).options(unique_key=key).enqueue(add, 1, 2)
            keys.append(key)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(enqueue, number)
    await own.commit()
    stored = place.look("SELECT unique_key FROM tasks ORDER BY unique_key")
    assert [key for (key,) in stored] == sorted(keys)
    assert len(keys) >= 10


class TestTooLate:
    """A cancellation that finds the savepoint gone."""

    @staticmethod
    def call(kept: asyncio.Event, go: asyncio.Event) -> Coroutine[Any, Any, int]:
        async def unit() -> int:
            with fate.work():
                pass
            kept.set()
            await go.wait()
            return 3

        fate = CancellationGuard()
        return fate.settle(unit)

    async def test_the_call_returns_and_what_is_awaited_next_raises(self) -> None:
        kept, go, seen = asyncio.Event(), asyncio.Event(), []

        async def caller() -> None:
            seen.append(await self.call(kept, go))
            await anyio.sleep_forever()

        task = asyncio.create_task(caller())
        await kept.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [3]
        assert task.cancelling() == 1

    async def test_a_task_that_awaits_nothing_more_has_its_answer(self) -> None:
        kept, go = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(self.call(kept, go))
        await kept.wait()
        task.cancel()
        go.set()
        assert await task == 3

    async def test_a_timeout_that_is_left_meanwhile_cancels_nothing_after_it(self) -> None:
        kept, go = asyncio.Event(), asyncio.Event()
        async with asyncio.timeout(None) as timeout:
            task = asyncio.create_task(kept.wait())
            task.add_done_callback(lambda _: timeout.reschedule(0))
            asyncio.get_running_loop().call_later(0.01, go.set)
            assert await self.call(kept, go) == 3
        assert timeout.expired()
        await anyio.sleep(0.001)


async def test_a_unit_that_cannot_be_interrupted_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_cancellation, "_GRACE", 0.05)
    fate, ended = CancellationGuard(), asyncio.Event()

    async def unit() -> None:
        try:
            with fate.work():
                await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.move_on_after(0.01) as scope:
        await fate.settle(unit)
    assert scope.cancelled_caught
    assert ended.is_set()
