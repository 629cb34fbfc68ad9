"""Fixtures of all tests, and the profiles of hypothesis.

HYPOTHESIS_PROFILE is "quick", "ci" (the default), "nightly" or "soak".
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=20)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=500)
settings.register_profile("soak", settings.get_profile("ci"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test that touches an event loop runs on both."""
    name: str = request.param
    return name


@pytest.fixture
def paused_collector() -> Generator[None]:
    """Collect garbage before a test that reaches the recursion limit, and none during it.

    A finalizer that the collector runs at the limit fails, and so does what reports its error.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# What the tests of these folders reach of sitq's code, the tests of other folders reach as well,
# and measuring triples the time of a search.
NOT_MEASURED = {"docs", "examples", "faults", "properties"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of some folders only."""
    for item in items:
        if item.path.parent.name in NOT_MEASURED:
            item.add_marker("no_cover")


def pytest_collection_finish() -> None:
    """Take what pytest has collected out of the garbage collector's sight.

    Tests that call ``gc.collect()`` would walk through thousands of tests each time.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what UTF-8 has no bytes for in a test's output: pytest-xdist cannot send it."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report
