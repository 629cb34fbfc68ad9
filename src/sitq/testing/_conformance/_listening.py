"""Checks of listeners: no change is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import pytest

from sitq.testing._conformance._suite import ENDS, LEASE, PATIENCE, PUTS_BACK, Store, Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sitq.models import OutcomeKind
    from sitq.protocols import Listener, Topic

__all__ = ["ListenChecks"]

_ROUNDS: Final = 20
# Steps of the loop; a listener that never waits would return about as often.
_TURNS: Final = 200


async def _heard(listener: Listener) -> None:
    with anyio.fail_after(PATIENCE):
        await listener.wait()


async def _enqueue(store: Store) -> None:
    await store.add()


async def _cancel_pending(store: Store) -> None:
    await store.cancel(await store.add())


async def _cancel_running(store: Store) -> None:
    await store.cancel((await store.taken()).id)


_CHANGES: Final[dict[Topic, Callable[[Store], Coroutine[Any, Any, None]]]] = {
    "tasks": _enqueue,
    "results": _cancel_pending,
    "cancels": _cancel_running,
}


_each_topic = pytest.mark.parametrize("topic", _CHANGES)


class ListenChecks(Suite):
    """`Backend.listen`."""

    @_each_topic
    async def test_a_change_before_the_wait_is_heard(self, store: Store, topic: Topic) -> None:
        """A change that was committed in the context ends the next wait at once."""
        async with store.backend.listen(topic) as listener:
            for _ in range(3):
                await _CHANGES[topic](store)
                await _heard(listener)

    @_each_topic
    async def test_a_change_during_the_wait_is_heard(self, store: Store, topic: Topic) -> None:
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
    async def test_every_listener_hears(self, store: Store, topic: Topic) -> None:
        """A change wakes all listeners."""
        async with store.backend.listen(topic) as one, store.backend.listen(topic) as two:
            await _CHANGES[topic](store)
            await _heard(one)
            async with store.backend.listen(topic):
                await _heard(two)

    @_each_topic
    async def test_a_listener_rests_while_nothing_changes(self, store: Store, topic: Topic) -> None:
        """Once it has returned for a change, it waits for the next one and leaves the loop idle."""
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
    async def test_a_cancelled_wait_loses_no_change(self, store: Store, topic: Topic) -> None:
        """Whichever of a cancellation and a change comes first, one of two waits returns."""
        for steps in range(_ROUNDS):
            async with store.backend.listen(topic) as listener:
                if not await self._wait_cancelled(store, topic, listener, steps):
                    await _heard(listener)

    @staticmethod
    async def _wait_cancelled(store: Store, topic: Topic, listener: Listener, steps: int) -> bool:
        """Cancel a wait so many turns after the change began; return whether it returned."""
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
        self, store: Store, peer: Store, topic: Topic
    ) -> None:
        """A change of one instance wakes the listeners of another, if `wakes_peers` says so."""
        if not self.wakes_peers:
            pytest.skip("this store does not wake those who listen through another instance")
        async with store.backend.listen(topic) as listener:
            for _ in range(3):
                await _CHANGES[topic](peer)
                await _heard(listener)

    @pytest.mark.parametrize("kind", PUTS_BACK)
    async def test_a_task_put_back_is_new_work(self, store: Store, kind: OutcomeKind) -> None:
        """Every outcome that makes a task pending changes ``"tasks"``."""
        task = await store.taken()
        async with store.changes("tasks"):
            await store.end(kind, task.lease)

    async def test_a_task_taken_back_is_new_work(self, store: Store) -> None:
        """A reclaim changes ``"tasks"``."""
        await store.taken()
        await store.advance(LEASE)
        async with store.changes("tasks"):
            await store.sweep(3)

    @pytest.mark.parametrize("kind", ENDS)
    async def test_an_end_is_a_result(self, store: Store, kind: OutcomeKind) -> None:
        """Every outcome that makes a task final changes ``"results"``."""
        task = await store.taken()
        async with store.changes("results"):
            await store.end(kind, task.lease)

    @pytest.mark.parametrize("kind", PUTS_BACK)
    async def test_a_return_that_cancels_is_a_result(self, store: Store, kind: OutcomeKind) -> None:
        """A task that was asked to end is final when it is put back, and ``"results"`` changes."""
        task = await store.taken()
        await store.cancel(task.id)
        async with store.changes("results"):
            await store.end(kind, task.lease)

    async def test_expiring_is_a_result(self, store: Store) -> None:
        """A sweep that expires tasks changes ``"results"``."""
        await store.add(expires_at=await store.later(1))
        await store.advance(1)
        async with store.changes("results"):
            await store.sweep(3)

    async def test_giving_way_to_a_new_task_is_a_result(self, store: Store) -> None:
        """An enqueue that expires the holder of its unique key changes ``"results"``."""
        await store.add(unique_key="k", expires_at=await store.later(1))
        await store.advance(1)
        async with store.changes("results"):
            await store.add(unique_key="k")

    async def test_a_last_crash_is_a_result(self, store: Store) -> None:
        """A sweep that fails a task as lost changes ``"results"``."""
        await store.taken()
        await store.advance(LEASE)
        async with store.changes("results"):
            await store.sweep(1)
