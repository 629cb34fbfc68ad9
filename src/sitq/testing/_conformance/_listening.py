"""Checks of listeners: no change is missed."""

# Checks are made of assertions.
# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import pytest

from sitq.models import OutcomeKind
from sitq.testing._conformance._store import LEASE, PATIENCE, StoreUnderTest
from sitq.testing._conformance._suite import Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from sitq.protocols import Listener, Topic

__all__ = ["ListenChecks"]

_RETURNS = (OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.UNKNOWN_FUNCTION)
_ENDS = (OutcomeKind.SUCCESS, OutcomeKind.FAILURE, OutcomeKind.CANCELLED)
_ROUNDS: Final = 20
# Turns of the loop in which a listener that never rests would return about as often.
_TURNS: Final = 200


async def _heard(listener: Listener) -> None:
    with anyio.fail_after(PATIENCE):
        await listener.wait()


async def _enqueue(store: StoreUnderTest) -> None:
    await store.add()


async def _cancel_pending(store: StoreUnderTest) -> None:
    await store.backend.cancel(await store.add())


async def _cancel_running(store: StoreUnderTest) -> None:
    await store.backend.cancel((await store.taken()).id)


_CHANGES: Final[dict[Topic, Callable[[StoreUnderTest], Coroutine[Any, Any, None]]]] = {
    "tasks": _enqueue,
    "results": _cancel_pending,
    "cancels": _cancel_running,
}


_each_topic = pytest.mark.parametrize("topic", _CHANGES)


class ListenChecks(Suite):
    """`Backend.listen`."""

    @_each_topic
    async def test_a_change_before_the_wait_is_heard(
        self, store: StoreUnderTest, topic: Topic
    ) -> None:
        """What was committed since the context was entered ends the next wait at once."""
        async with store.backend.listen(topic) as listener:
            for _ in range(3):
                await _CHANGES[topic](store)
                await _heard(listener)

    @_each_topic
    async def test_a_change_during_the_wait_is_heard(
        self, store: StoreUnderTest, topic: Topic
    ) -> None:
        """A listener that waits is woken, each time."""
        heard = 0

        async def listen(listener: Listener) -> None:
            nonlocal heard
            await listener.wait()
            heard += 1

        async with store.backend.listen(topic) as listener:
            for turn in (1, 2, 3):
                with anyio.fail_after(PATIENCE):
                    async with anyio.create_task_group() as group:
                        group.start_soon(listen, listener)
                        await anyio.wait_all_tasks_blocked()
                        await _CHANGES[topic](store)
                assert heard == turn

    @_each_topic
    async def test_every_listener_hears(self, store: StoreUnderTest, topic: Topic) -> None:
        """One that has heard a change takes it from nobody else."""
        async with (
            store.backend.listen(topic) as one,
            store.backend.listen(topic) as two,
        ):
            await _CHANGES[topic](store)
            await _heard(one)
            async with store.backend.listen(topic):
                await _heard(two)

    @_each_topic
    async def test_a_listener_rests_while_nothing_changes(
        self, store: StoreUnderTest, topic: Topic
    ) -> None:
        """Once it has told of a change it waits for the next, and does not keep the loop busy."""
        returns = 0

        async def listen(listener: Listener) -> None:
            nonlocal returns
            while True:
                await listener.wait()
                returns += 1

        async with store.backend.listen(topic) as listener:
            await _CHANGES[topic](store)
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(listen, listener)
                    for _ in range(_TURNS):
                        await anyio.wait_all_tasks_blocked()
                    group.cancel_scope.cancel()
        assert returns < _TURNS / 4

    @_each_topic
    async def test_a_cancelled_wait_loses_no_change(
        self, store: StoreUnderTest, topic: Topic
    ) -> None:
        """However a cancellation and a change meet, one of two waits tells of the change."""
        for steps in range(_ROUNDS):
            async with store.backend.listen(topic) as listener:
                if not await self._wait_cancelled(store, topic, listener, steps):
                    await _heard(listener)

    @staticmethod
    async def _wait_cancelled(
        store: StoreUnderTest, topic: Topic, listener: Listener, steps: int
    ) -> bool:
        """Wait, be cancelled so many steps after the change began; tell if the wait returned."""
        returned = False

        async def listen() -> None:
            nonlocal returned
            await listener.wait()
            returned = True

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as changing, anyio.create_task_group() as group:
                group.start_soon(listen)
                await anyio.lowlevel.checkpoint()
                changing.start_soon(_CHANGES[topic], store)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        return returned

    @_each_topic
    async def test_changes_through_another_instance_are_heard(
        self, store: StoreUnderTest, peer: StoreUnderTest, topic: Topic
    ) -> None:
        """Who shares a store wakes those who listen to it elsewhere, if the store can do that."""
        if not self.wakes_peers:
            pytest.skip("this store does not wake those who listen through another instance")
        async with store.backend.listen(topic) as listener:
            for _ in range(3):
                await _CHANGES[topic](peer)
                await _heard(listener)

    @pytest.mark.parametrize("kind", _RETURNS)
    async def test_a_task_put_back_is_new_work(
        self, store: StoreUnderTest, kind: OutcomeKind
    ) -> None:
        """Every outcome that makes a task pending changes ``"tasks"``."""
        task = await store.taken()
        async with store.backend.listen("tasks") as listener:
            await store.end(kind, task.lease)
            await _heard(listener)

    async def test_a_task_taken_back_is_new_work(self, store: StoreUnderTest) -> None:
        """A reclaim changes ``"tasks"``."""
        await store.taken()
        await store.advance(LEASE)
        async with store.backend.listen("tasks") as listener:
            await store.backend.sweep(3)
            await _heard(listener)

    @pytest.mark.parametrize("kind", _ENDS)
    async def test_an_end_is_a_result(self, store: StoreUnderTest, kind: OutcomeKind) -> None:
        """Every outcome that makes a task final changes ``"results"``."""
        task = await store.taken()
        async with store.backend.listen("results") as listener:
            await store.end(kind, task.lease)
            await _heard(listener)

    @pytest.mark.parametrize("kind", _RETURNS)
    async def test_a_return_that_cancels_is_a_result(
        self, store: StoreUnderTest, kind: OutcomeKind
    ) -> None:
        """A task that was asked to end is final when it is put back, and ``"results"`` changes."""
        task = await store.taken()
        await store.backend.cancel(task.id)
        async with store.backend.listen("results") as listener:
            await store.end(kind, task.lease)
            await _heard(listener)

    async def test_expiring_is_a_result(self, store: StoreUnderTest) -> None:
        """A sweep that expires tasks changes ``"results"``."""
        await store.add(expires_at=await store.later(1))
        await store.advance(1)
        async with store.backend.listen("results") as listener:
            await store.backend.sweep(3)
            await _heard(listener)

    async def test_giving_way_to_a_new_task_is_a_result(self, store: StoreUnderTest) -> None:
        """An enqueue that expires the holder of its unique key changes ``"results"``."""
        await store.add(unique_key="k", expires_at=await store.later(1))
        await store.advance(1)
        async with store.backend.listen("results") as listener:
            await store.add(unique_key="k")
            await _heard(listener)

    async def test_a_last_crash_is_a_result(self, store: StoreUnderTest) -> None:
        """A sweep that fails a task as lost changes ``"results"``."""
        await store.taken()
        await store.advance(LEASE)
        async with store.backend.listen("results") as listener:
            await store.backend.sweep(1)
            await _heard(listener)
