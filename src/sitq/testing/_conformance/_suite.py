"""What every group of checks stands on: how a store is made, opened, and moved in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from sitq.testing._clock import FakeClock
from sitq.testing._conformance._store import StoreUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sitq.protocols import Backend

__all__ = ["Suite"]


@pytest.mark.anyio
class Suite:
    """What a store is asked for by its checks, and what it can say of itself."""

    #: Seconds on either side of a boundary of time: the smallest step of a clock that tests move.
    #: A store that judges by the time of a server takes what no check ever lasts.
    tick: ClassVar[float] = 0.000001
    #: Whether tasks outlive the last ``close`` of an instance.
    keeps_tasks: ClassVar[bool] = True
    #: Whether a change through one instance wakes those who listen through another one, in this
    #: process or elsewhere; without that, workers find new tasks by their poll interval.
    wakes_peers: ClassVar[bool] = True

    def make_backend(self, clock: FakeClock) -> Backend:
        """Return a backend on an empty store of its own, not open yet.

        Args:
            clock: the clock that it is to judge by.
        """
        raise NotImplementedError("say in make_backend which backend is to be checked")

    def make_peer(self, clock: FakeClock) -> Backend | None:
        """Return another instance on the store that this test's `make_backend` made.

        ``None``, unless overridden: the store cannot be shared.
        """
        del clock
        return None

    async def now(self, clock: FakeClock) -> datetime:
        """Return the moment that the store judges by; override it where that is a server's."""
        return clock.now()

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        """Move the store's time on; override it where that is a server's."""
        clock.advance(seconds)

    def wrap(self, backend: Backend, clock: FakeClock) -> StoreUnderTest:
        """The backend in the words of the checks."""
        return StoreUnderTest(
            backend,
            self.tick,
            lambda: self.now(clock),
            lambda seconds: self.advance(clock, seconds),
        )

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock of one check."""
        return FakeClock()

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[StoreUnderTest]:
        """The store under test, open and empty."""
        backend = self.make_backend(clock)
        await backend.open()
        yield self.wrap(backend, clock)
        await backend.close()

    @pytest.fixture
    async def peer(self, store: StoreUnderTest, clock: FakeClock) -> AsyncIterator[StoreUnderTest]:
        """The same store through another instance."""
        backend = self.make_peer(clock)
        if backend is None:
            pytest.skip("this store cannot be shared by two instances")
        await backend.open()
        yield self.wrap(backend, clock)
        await backend.close()
        del store
