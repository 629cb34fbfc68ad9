"""What PostgreSQL and its driver say of values that they can never keep."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from sitq.backends.postgres._errors import translate_error
from sitq.errors import BackendValueError
from tests.postgres.servers import dsn


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT $1::int2", 70_000),  # the driver refuses it, and quotes it
        ("SELECT $1::text", "secret\0"),
        ("SELECT chr(0) FROM (SELECT $1::text) AS x", "secret"),
        ("SELECT make_interval(secs => $1::float8)", 1e300),
    ],
)
def test_a_value_that_can_never_be_stored_has_an_error_of_its_own(
    statement: str, value: object
) -> None:
    async def ask() -> Exception:
        connection = await asyncpg.connect(dsn())
        try:
            await connection.fetch(statement, value)
        except Exception as error:
            return error
        finally:
            await connection.close()
        raise AssertionError("it can")

    error = translate_error("finish", "postgresql:///app", asyncio.run(ask()))
    assert isinstance(error, BackendValueError)
    assert str(value) not in str(error)
