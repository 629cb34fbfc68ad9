"""Every backend of sitq keeps the rules of the `AdminBackend` port."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitq.backends.memory import MemoryBackend
from sitq.backends.sqlite import SQLiteBackend
from sitq.protocols import Backend, Clock
from sitq.testing import AdminBackendConformance


class TestMemory(AdminBackendConformance):
    def make_backend(self, clock: Clock) -> Backend:
        return MemoryBackend(clock=clock)


class TestSQLiteInMemory(AdminBackendConformance):
    def make_backend(self, clock: Clock) -> Backend:
        return SQLiteBackend(":memory:", clock=clock)


class TestSQLiteFile(AdminBackendConformance):
    path: Path

    @pytest.fixture(autouse=True)
    def _own_file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "q.db"

    def make_backend(self, clock: Clock) -> Backend:
        return SQLiteBackend(self.path, clock=clock)

    make_peer = make_backend
