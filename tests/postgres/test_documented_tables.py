"""The page about PostgreSQL's tables says what a new store has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, LiteralString

import anyio
import psycopg
import pytest

from sitq.backends.postgres import PostgresBackend
from sitq.backends.postgres._wakeups import channels_of
from tests.docs.pages import ROOT, blocks
from tests.postgres.servers import dsn, new_schema

PAGE = ROOT / "docs" / "reference" / "postgresql-tables.md"
SECTIONS = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text()))
Store = tuple[psycopg.Connection[Any], str]


def rows(section: str) -> list[tuple[str, ...]]:
    """Return the rows of a section's table, without its head."""
    lines = re.findall(r"(?m)^\| (.+) \|$", SECTIONS[section])
    return [tuple(line.split(" | ")) for line in lines[2:]]


def names(section: str) -> set[str]:
    return {row[0].strip("`") for row in rows(section)}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A connection, and the schema of a new store."""
    schema = new_schema()

    async def migrate() -> None:
        backend = PostgresBackend(dsn(), schema=schema)
        await backend.open()
        await backend.close()

    anyio.run(migrate)
    with psycopg.connect(dsn()) as connection:
        yield connection, schema


def ask(store: Store, query: LiteralString) -> list[tuple[Any, ...]]:
    connection, schema = store
    return connection.execute(query, {"schema": schema}).fetchall()


@pytest.mark.parametrize("table", ["tasks", "attempts", "pauses", "workers", "migrations"])
def test_the_page_has_each_column_in_order_with_its_type(store: Store, table: str) -> None:
    connection, schema = store
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
        [schema, table],
    ).fetchall()
    short = {"timestamp with time zone": "timestamptz"}
    found = [(f"`{name}`", short.get(kind, kind)) for name, kind in columns]
    assert found == [row[:2] for row in rows(f"Table `{table}`")]


def test_the_page_has_each_table(store: Store) -> None:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = %(schema)s"
    documented = {title for title in SECTIONS if title.startswith("Table")}
    assert {f"Table `{name}`" for (name,) in ask(store, query)} == documented


def test_the_page_has_each_index_with_its_columns(store: Store) -> None:
    query = """
        SELECT class.relname, array_agg(attribute.attname::text ORDER BY attribute.attnum),
               index.indpred IS NOT NULL
        FROM pg_index AS index
        JOIN pg_class AS class ON class.oid = index.indexrelid
        JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid
        WHERE class.relnamespace = %(schema)s::regnamespace
        GROUP BY class.relname, index.indpred IS NOT NULL
    """
    documented = {
        (row[0].strip("`"), tuple(re.findall(r"`(\w+)`", row[1])), row[2] != "all")
        for row in rows("Indexes")
        if len(row) > 2
    }
    assert {(name, tuple(columns), part) for name, columns, part in ask(store, query)} == documented


def test_the_page_has_each_function_and_its_rights(store: Store) -> None:
    query = """
        SELECT proname, prosecdef, proconfig FROM pg_proc
        WHERE pronamespace = %(schema)s::regnamespace
    """
    functions = ask(store, query)
    assert {name for name, _, _ in functions} == names("Functions")
    for _, is_definer, settings in functions:
        assert not is_definer
        assert "search_path=pg_catalog, pg_temp" in settings


def test_the_page_has_each_channel() -> None:
    assert set(channels_of("sitq")) == names("Channels")


def test_a_new_store_grants_what_the_page_says(store: Store) -> None:
    query = """
        SELECT class.relname, one.grantee, one.privilege_type
        FROM pg_class AS class, aclexplode(class.relacl) AS one
        WHERE class.relnamespace = %(schema)s::regnamespace AND one.grantee <> class.relowner
    """
    assert ask(store, query) == [("tasks_seq_seq", 0, "USAGE")]


@pytest.mark.parametrize(
    "query", [b.text for b in blocks(PAGE) if b.language == "sql"], ids=["1", "2", "3"]
)
def test_the_queries_of_the_page_run(store: Store, query: str) -> None:
    connection, schema = store
    text = query.replace("sitq.", f'"{schema}".')
    assert connection.execute(text.encode()).fetchall() == []
