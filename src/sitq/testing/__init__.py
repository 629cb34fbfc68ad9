"""For tests: a clock to move by hand, faults on demand, and the checks that a backend passes."""

from __future__ import annotations

from sitq.testing._clock import FakeClock
from sitq.testing._faults import FaultyBackend

__all__ = ["FakeClock", "FaultyBackend"]
