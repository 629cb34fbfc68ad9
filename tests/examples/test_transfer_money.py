"""The transfer example keeps every account right, whatever is killed."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.postgres.servers import dsn

EXAMPLE = Path(__file__).parents[2] / "examples" / "transfer_money.py"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new store."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bank.db'}"
        return
    name = f"bank_{secrets.token_hex(6)}"
    with psycopg.connect(dsn(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        yield of_database(name)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def of_database(name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(dsn())._replace(path=f"/{name}"))


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
