"""What a URL and the parameters say: read once, shown without secrets, refused when wrong."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
import psycopg
import pytest
from psycopg.sql import SQL, Identifier

import sitq
from sitq import BackendBusyError, ValidationError
from sitq.backends.postgres import PostgresBackend
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema

SECRET = "hush"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@db/app", "postgresql://me@db/app"),
        (f"postgres://me:{SECRET}@db:5433/app?sslmode=require", "postgresql://me@db:5433/app"),
        (f"postgresql://me:{SECRET}@[::1]:5433/app", "postgresql://me@[::1]:5433/app"),
        (f"postgresql://me:{SECRET}@one:1,two:2/app", "postgresql://me@one:1,two:2/app"),
        ("postgresql:///app?host=/run/pg", "postgresql:///app in /run/pg"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert repr(PostgresBackend(url)) == f"PostgresBackend('{shown}', schema='sitq')"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"postgresql://me:{SECRET}@db:port/app", "percent-encode its parts"),
        (f"postgresql://me:{SECRET}@[::1/app", "percent-encode its parts"),
        (f"postgresql://me:12/{SECRET}@db/app", "percent-encode its parts"),
        (f"postgresql:///me:{SECRET}@db/app?sslmode=require", "percent-encode its parts"),
        (f"postgresql://m/e:{SECRET}@db/app", "percent-encode its parts"),
        (f"postgresql://me:12#{SECRET}@db/app", "percent-encode its parts"),
        (f"postgresql:me:{SECRET}@db/app?x=1", "give a URL like postgresql://"),
        (f"postgresql:/me:{SECRET}@db/app?x=1", "give a URL like postgresql://"),
        ("mysql://db/app", "give a URL like postgresql://"),
        ("postgresql://db/app?connect_timeout=3", "no option 'connect_timeout'; leave it out"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        PostgresBackend(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "give 0.001 to 86400 seconds, or None"),
        (-1, "give 0.001 to 86400 seconds, or None"),
        (float("nan"), "give 0.001 to 86400 seconds, or None"),
        (True, r"give seconds as int or float \(got bool\)"),
        ("5", r"give seconds as int or float \(got str\)"),
    ],
)
def test_a_time_that_no_statement_can_have_is_refused(seconds: float, told: str) -> None:
    with pytest.raises(ValidationError, match=f"statement_timeout: {told}"):
        PostgresBackend("postgresql://db/app", statement_timeout=seconds)


def with_options(options: str) -> str:
    """The test server's URL with more options."""
    return dsn() + ("&" if urlsplit(dsn()).query else "?") + options


@pytest.mark.anyio
async def test_a_url_may_carry_the_options_of_the_backend() -> None:
    schema = new_schema()
    url = with_options(f"schema={schema}&migrate=true&pool_size=1&application_name=mine")
    async with sitq.TaskQueue(sitq.connect(url)) as queue:
        task_id = await queue.enqueue(print)
        assert (await queue.get_task(task_id)).attempts == 0
    refusing = sitq.connect(with_options(f"schema={new_schema()}&migrate=false"))
    with pytest.raises(sitq.BackendFormatError):
        await refusing.open()


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.anyio
async def test_a_statement_that_takes_too_long_is_ended_and_has_done_nothing(
    prepared: bool,
) -> None:
    schema = new_schema()
    backend = PostgresBackend(
        dsn(), schema=schema, statement_timeout=1.0, prepared_statements=prepared
    )
    await backend.open()
    task = new_task()
    with psycopg.connect(dsn()) as other:
        other.execute(
            SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(schema, "tasks"))
        )
        with anyio.fail_after(20), pytest.raises(BackendBusyError, match="statement timeout"):
            await backend.enqueue([task])
    assert await backend.get_tasks([task.id]) == [None]
    await backend.close()
