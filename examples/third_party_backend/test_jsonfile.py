"""The JSON file keeps the rules of the `Backend` port; run `python -m pytest` in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitq import Backend, Clock
from sitq.testing import BackendConformance
from sitq_jsonfile import JsonFileBackend


class TestJsonFile(BackendConformance):
    """All checks, on asyncio and on trio."""

    path: Path

    @pytest.fixture(autouse=True)
    def _own_file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "tasks.json"

    def make_backend(self, clock: Clock) -> Backend:
        return JsonFileBackend(self.path, clock=clock)

    def make_peer(self, clock: Clock) -> Backend:
        return JsonFileBackend(self.path, clock=clock)
