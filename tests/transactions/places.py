"""Stores of both kinds, each with a table of the user's beside the tasks."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg

from sitq import SQLiteBackend
from sitq.backends.postgres import PostgresBackend
from sitq.protocols import Backend
from tests.postgres.servers import dsn, new_schema

NOTES = "CREATE TABLE notes (text TEXT)"


class Place:
    """An empty store in a SQLite file."""

    lost = "SELECT count(*) FROM leases"

    def __init__(self, path: Path) -> None:
        self.path = path

    def backend(self, **options: Any) -> Backend:
        """A new instance on the store."""
        return SQLiteBackend(self.path, **options)

    def look(self, query: str) -> list[tuple[Any, ...]]:
        """Look into the store past everybody."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def prepare(self) -> None:
        """Make the user's table."""
        connection = sqlite3.connect(self.path)
        connection.execute(NOTES)
        connection.close()

    def remove(self) -> None:
        """Leave nothing behind."""

    @property
    def notes(self) -> list[str]:
        """What the user has written."""
        return [text for (text,) in self.look("SELECT text FROM notes ORDER BY text")]


class PostgresPlace(Place):
    """An empty store in a schema of PostgreSQL."""

    lost = "SELECT count(*) FROM tasks WHERE lease_end IS NOT NULL"

    def __init__(self) -> None:
        self.schema = new_schema()
        self.dsn = dsn()
        self.options = f"-c search_path={self.schema}"

    def backend(self, **options: Any) -> Backend:
        return PostgresBackend(self.dsn, schema=self.schema, **options)

    def look(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, options=self.options) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def prepare(self) -> None:
        self.look(NOTES)

    def remove(self) -> None:
        self.look(f'DROP SCHEMA IF EXISTS "{self.schema}" CASCADE')
