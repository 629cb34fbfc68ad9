"""Fixtures of all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test that touches an event loop runs on both."""
    name: str = request.param
    return name
