"""What SQLite and its driver say of values that they can never keep."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from sitq.backends.sqlite._errors import translate_error
from sitq.errors import BackendValueError


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT ?", "x" * 2000),
        ("SELECT ?", 2**70),
        ("SELECT ?", "\ud800"),
        ("INSERT INTO few VALUES (?)", 7),
    ],
)
def test_a_value_that_can_never_be_stored_has_an_error_of_its_own(
    statement: str, value: Any
) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE few (number CHECK (number < 3))")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
        with pytest.raises(Exception) as caught:
            connection.execute(statement, (value,))
    error = translate_error("finish", "q.db", caught.value)
    assert isinstance(error, BackendValueError)
    assert str(value) not in str(error)
