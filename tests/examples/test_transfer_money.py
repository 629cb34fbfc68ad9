"""The transfer example keeps every account right, whatever is killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "transfer_money.py"


@pytest.fixture(params=["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new store."""
    return f"sqlite:///{tmp_path / 'bank.db'}"


@pytest.mark.timeout(180)
def test_money_moves_exactly_once_under_kill_9(url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), url, "200"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = re.match(r"(\d+) transfers, (\d+) workers killed, (\d+) attempts lost", done.stdout)
    assert told, done.stdout
    transfers, kills, _ = map(int, told.groups())
    assert (transfers, kills > 0) == (160, True), done.stdout
    assert "5000 in all accounts" in done.stdout
