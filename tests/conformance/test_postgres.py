"""The PostgreSQL store keeps the rules of the `Backend` port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sitq.backends.postgres import PostgresBackend
from sitq.protocols import Backend, Clock
from sitq.testing import AdminBackendConformance, BackendConformance
from tests.postgres.servers import dsn, new_schema, query


class OnPostgres:
    """How a backend on a schema of its own is made."""

    schema: str
    prepared = True

    @pytest.fixture(autouse=True)
    def _own_schema(self) -> Iterator[None]:
        self.schema = new_schema()
        yield
        query(f'DROP SCHEMA IF EXISTS "{self.schema}" CASCADE')

    def make_backend(self, clock: Clock) -> Backend:
        return PostgresBackend(
            dsn(), schema=self.schema, prepared_statements=self.prepared, clock=clock
        )

    make_peer = make_backend


class TestPostgres(OnPostgres, BackendConformance):
    pass


class TestPostgresAdministration(OnPostgres, AdminBackendConformance):
    pass
