"""Connections of SQLite that raise at a chosen statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import pytest

__all__ = ["Failing"]


class Failing:
    """Has every new connection raise what a test asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._plan: tuple[str, str, BaseException] | None = None
        self._left = 0
        self.raised = 0
        plain: Any = sqlite3.connect
        failing = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Any = ()) -> Self:
                failing.maybe("before", sql)
                super().execute(sql, parameters)
                failing.maybe("after", sql)
                return self

        class Connection(sqlite3.Connection):
            def cursor(self, *_: Any) -> Any:
                return Cursor(self)

            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                failing.maybe("before", sql)
                cursor = super().execute(sql, parameters)
                failing.maybe("after", sql)
                return cursor

        def connect(database: str | Path, **options: Any) -> sqlite3.Connection:
            if not isinstance(database, Path):  # which are the test's own
                options["factory"] = Connection
            connection: sqlite3.Connection = plain(database, **options)
            return connection

        self.factory: type[sqlite3.Connection] = Connection
        monkeypatch.setattr(sqlite3, "connect", connect)

    def maybe(self, when: str, sql: str) -> None:
        """Raise, if it is the moment."""
        if self._plan is None or self._left <= 0:
            return
        at, text, error = self._plan
        if at == when and sql.lstrip().startswith(text):
            self._left -= 1
            self.raised += 1
            raise error

    @contextmanager
    def at(
        self,
        text: str,
        when: Literal["before", "after"],
        error: BaseException,
        times: int = 1,
    ) -> Iterator[None]:
        """Raise before or after the next statements that begin with a text."""
        self._plan, self._left, self.raised = (when, text, error), times, 0
        try:
            yield
        finally:
            self._plan = None
