"""What a caller gives of a subclass, PostgreSQL's driver gets as the plain type."""

from __future__ import annotations

import pytest

from sitq.backends.postgres import PostgresBackend
from tests.postgres.servers import dsn, new_schema
from tests.unit.test_subclasses import Text, check_options_and_values


@pytest.mark.anyio
async def test_options_and_values_of_subclasses_are_stored_as_plain_ones() -> None:
    await check_options_and_values(PostgresBackend(Text(dsn()), schema=Text(new_schema())))
