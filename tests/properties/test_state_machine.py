"""Whatever is done to the stores, in whatever order: they agree, and they keep the rules."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis.errors import FlakyStrategyDefinition

from tests.properties.admin_machine import AdminMachine
from tests.properties.machine import search
from tests.properties.stores import Maker, memory, postgres, private_sqlite, sqlite_file

# Enough for slow machines, and for coverage. A soak takes its time.
pytestmark = pytest.mark.timeout(0 if "SITQ_SOAK" in os.environ else 300)


def run(loop: str, *stores: Maker) -> None:
    # The searches of nightly and soak are random; a change is held to the same calls each time.
    is_long = "SITQ_SOAK" in os.environ
    profile = settings() if is_long else settings(derandomize=True, database=None)
    if postgres in stores:  # a server takes its time
        profile = settings(profile, max_examples=max(6, profile.max_examples // 5))
    for is_last in (False, False, True):
        try:
            return search(profile, *stores, loop=loop, kind=AdminMachine)
        except (FlakyStrategyDefinition, BaseExceptionGroup) as error:
            # A server that is busy answers calls at once in another order, which offers the search
            # other rules than before. It is no rule of a store that is broken.
            if is_last or postgres not in stores or not _is_of_the_search(error):
                raise
    return None


def _is_of_the_search(error: BaseException) -> bool:
    """Return whether the search itself has failed, and no store."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_the_search, error.exceptions))
    return isinstance(error, FlakyStrategyDefinition)


def test_the_file_agrees_with_the_reference(anyio_backend: str) -> None:
    run(anyio_backend, memory, sqlite_file)


def test_the_private_database_agrees_with_the_reference(anyio_backend: str) -> None:
    run(anyio_backend, memory, private_sqlite)


def test_the_server_agrees_with_the_reference(anyio_backend: str) -> None:
    run(anyio_backend, memory, postgres)


@pytest.mark.parametrize("store", [memory, sqlite_file, postgres])
def test_calls_at_once_are_as_good_as_one_after_the_other(anyio_backend: str, store: Maker) -> None:
    run(anyio_backend, store)
