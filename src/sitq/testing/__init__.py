"""For tests: a clock that a test moves, a backend that fails, and the checks of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sitq.testing._clock import FakeClock
from sitq.testing._faults import FaultyBackend

if TYPE_CHECKING:
    from sitq.testing._conformance import AdminBackendConformance, BackendConformance

__all__ = ["AdminBackendConformance", "BackendConformance", "FakeClock", "FaultyBackend"]


def __getattr__(name: str) -> object:
    """Load the checks on first use: they need pytest, the rest does not."""
    if name not in {"AdminBackendConformance", "BackendConformance"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # A failed assertion then shows its values, as in any test.
    pytest.register_assert_rewrite("sitq.testing._conformance")
    from sitq.testing import _conformance

    return getattr(_conformance, name)
