"""`FakeClock`: a clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio.lowlevel

from sitq._loops import SharedEvent
from sitq.errors import ValidationError

__all__ = ["FakeClock"]

_START: Final = datetime(2030, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until it is moved; usable from any thread and any event loop.

    Args:
        start: the moment that it shows first, aware; noon of 1 January 2030 (UTC) unless given.

    Raises:
        ValidationError: ``start`` has no time zone.
    """

    def __init__(self, start: datetime = _START) -> None:
        if start.utcoffset() is None:
            raise ValidationError("start: give an aware datetime, such as one with tzinfo=UTC")
        self._lock: Final = threading.Lock()
        self._now = start.astimezone(UTC)
        # Whole microseconds: a sum of floats could stop just short of a deadline.
        self._elapsed = timedelta()
        self._sleepers: list[tuple[timedelta, SharedEvent]] = []

    def __repr__(self) -> str:
        return f"FakeClock({self._now.isoformat()})"

    def now(self) -> datetime:
        """Return the moment that it shows, in UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds by which it was advanced so far."""
        return self._elapsed / timedelta(seconds=1)

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced by ``seconds``, which start now."""
        await anyio.lowlevel.checkpoint()
        woken = SharedEvent()
        with self._lock:
            entry = (self._elapsed + timedelta(seconds=seconds), woken)
            if entry[0] <= self._elapsed:
                return
            self._sleepers.append(entry)
        try:
            await woken.wait()
        finally:
            with self._lock:
                if entry in self._sleepers:
                    self._sleepers.remove(entry)

    def advance(self, seconds: float) -> None:
        """Move both clocks on, and end the sleeps that are over.

        Args:
            seconds: 0 or more.

        Raises:
            ValidationError: ``seconds`` is negative; `jump` moves the wall clock back.
        """
        if seconds < 0:
            raise ValidationError("seconds: time does not go back; use jump() for the wall clock")
        step = timedelta(seconds=seconds)
        with self._lock:
            self._now += step
            self._elapsed += step
            woken = [event for until, event in self._sleepers if until <= self._elapsed]
        for event in woken:
            event.set()

    def jump(self, seconds: float) -> None:
        """Set the wall clock only, as an administrator or a time server does. No sleep ends by it.

        Args:
            seconds: the length of the jump; negative for a jump back.
        """
        with self._lock:
            self._now += timedelta(seconds=seconds)
