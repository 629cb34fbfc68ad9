"""Fixtures of all tests, and how long hypothesis searches: HYPOTHESIS_PROFILE=quick, ci or soak."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile(
    "ci", max_examples=100, stateful_step_count=30, deadline=None, print_blob=True
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=20)
settings.register_profile("soak", settings.get_profile("ci"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test that touches an event loop runs on both."""
    name: str = request.param
    return name
