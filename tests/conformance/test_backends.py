"""Every backend of sitq keeps the rules of the `Backend` port."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitq.backends.memory import MemoryBackend
from sitq.backends.sqlite import SQLiteBackend
from sitq.protocols import Backend, Clock
from sitq.testing import BackendConformance
from sitq.testing._conformance._listening import ListenChecks


class TestMemory(BackendConformance):
    def make_backend(self, clock: Clock) -> Backend:
        return MemoryBackend(clock=clock)


class TestSQLiteInMemory(BackendConformance):
    keeps_tasks = False

    def make_backend(self, clock: Clock) -> Backend:
        return SQLiteBackend(":memory:", clock=clock)


class TestSQLiteFile(BackendConformance):
    path: Path

    @pytest.fixture(autouse=True)
    def _own_file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "q.db"

    def make_backend(self, clock: Clock) -> Backend:
        return SQLiteBackend(self.path, clock=clock)

    def make_peer(self, clock: Clock) -> Backend:
        return SQLiteBackend(self.path, synchronous="NORMAL", clock=clock)


class TestSQLiteFileThatCannotBeWatched(ListenChecks):
    path: Path

    @pytest.fixture(autouse=True)
    def _own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "q.db"
        monkeypatch.setattr("sitq.backends.sqlite._wakeups._CAN_WATCH", False)

    make_backend = TestSQLiteFile.make_backend
    make_peer = TestSQLiteFile.make_peer
