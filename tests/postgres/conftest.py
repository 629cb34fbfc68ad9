"""A server that may be broken, and a proxy in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres.proxies import Proxy
from tests.postgres.servers import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be broken."""
    server = Server(max_connections="40")
    yield server
    server.remove()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of it."""
    with Proxy(f"{server.folder}/data/.s.PGSQL.5432") as proxy:
        yield proxy
