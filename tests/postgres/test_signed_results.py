"""Signed results come back from PostgreSQL, whose texts differ, and forged ones are refused."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from sitq import MsgpackSerializer, SerializationError, TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend
from tests.postgres.servers import dsn, new_schema, query

KEYS = [b"k" * 32]


def double(number: int) -> int:
    return 2 * number


def fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.anyio
async def test_results_are_signed_and_forged_ones_refused() -> None:
    schema = new_schema()
    backend, serializer = PostgresBackend(dsn(), schema=schema), MsgpackSerializer(keys=KEYS)
    async with TaskQueue(backend, serializer) as queue:
        good = await queue.enqueue(double, 21)
        forged = await queue.enqueue(double, 4)
        bad = await queue.enqueue(fail, "nul \0 character")
        await Worker(backend, serializer, tasks=[double, fail]).drain()
        change = f"UPDATE {schema}.tasks SET value = '\\x05' WHERE id = '{forged}' RETURNING id"
        await anyio.to_thread.run_sync(query, change)
        assert await queue.result(good) == 42
        with pytest.raises(SerializationError, match="signature"):
            await queue.result(forged)
        result = await queue.get_result(bad)
        assert result is not None
        assert result.error == "ValueError: nul \\x00 character"
        assert result.traceback is not None
        assert "signature" not in result.traceback
