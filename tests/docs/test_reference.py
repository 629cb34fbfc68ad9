"""The reference names all that is public, and the drawings show what the code does."""

from __future__ import annotations

import inspect
import re
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

import sitq
import sitq.backends.memory
import sitq.backends.postgres
import sitq.errors
import sitq.testing
from sitq.states import TRANSITIONS
from tests.docs.pages import PAGES, ROOT, blocks

DOCS = ROOT / "docs"
REFERENCE = "\n".join(path.read_text() for path in sorted(DOCS.glob("reference/*.md")))


PUBLIC = {
    *sitq.__all__,
    *sitq.testing.__all__,
    *sitq.backends.memory.__all__,
    *sitq.backends.postgres.__all__,
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_reference_names_each_public_name(name: str) -> None:
    assert re.search(rf"`(\w+\.)*{name}\b", REFERENCE)


@pytest.mark.parametrize(
    "owner",
    ["TaskQueue", "SyncTaskQueue", "Worker", "SQLiteBackend"],
)
def test_the_reference_names_each_public_method(owner: str) -> None:
    methods = [name for name in vars(getattr(sitq, owner)) if not name.startswith("_")]
    page = (DOCS / "reference" / "api.md").read_text()
    assert methods
    missing = [name for name in methods if not re.search(rf"`{name}\b", page)]
    assert not missing


@pytest.mark.parametrize(
    "function",
    [
        sitq.TaskQueue.options,
        sitq.Worker.__init__,
        sitq.SQLiteBackend.__init__,
        sitq.backends.postgres.PostgresBackend.__init__,
    ],
    ids=["options", "Worker", "SQLiteBackend", "PostgresBackend"],
)
def test_the_reference_names_each_option(function: object) -> None:
    assert callable(function)
    page = (DOCS / "reference" / "options.md").read_text()
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    missing = [name for name in names if f"`{name}`" not in page]
    assert not missing


def test_the_reference_names_each_field_of_a_retry_policy() -> None:
    page = (DOCS / "reference" / "options.md").read_text()
    missing = [name for name in sitq.RetryPolicy.model_fields if f"`{name}`" not in page]
    assert not missing


def test_the_reference_names_each_error() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    missing = [name for name in sitq.errors.__all__ if f"`{name}`" not in page]
    assert not missing


def test_the_state_diagram_draws_exactly_the_transitions_of_the_code() -> None:
    page = DOCS / "explanation" / "life-of-a-task.md"
    (diagram,) = [block.text for block in blocks(page) if block.language == "mermaid"]
    drawn = set(re.findall(r"(?m)^\s*(\w+) --> (\w+)", diagram))
    assert drawn == {(str(a), str(b)) for a, targets in TRANSITIONS.items() for b in targets}


def test_the_map_of_the_architecture_names_each_public_part_and_nothing_else() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text()
    source = ROOT / "src" / "sitq"
    named = {path.rstrip("/") for path in re.findall(r"`([\w/]+(?:\.py|/))`", page)}
    assert not [path for path in named if not (source / path).exists()]
    parts = [path for path in source.iterdir() if not path.name.startswith("_")]
    public = {path.name for path in parts if path.suffix == ".py" or path.is_dir()}
    assert public <= named


def test_the_map_of_the_architecture_has_the_order_of_the_import_contracts() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text()
    rows = re.findall(r"(?m)^\| [\w ]+ \| (`[^|]+`) \|", page.partition("## Stores")[0])
    drawn = [[Path(name).stem for name in re.findall(r"`([^`]+)`", row)] for row in rows]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (whole,) = [c for c in contracts["contracts"] if c["containers"] == ["sitq"]]
    layers = [re.findall(r"\w+", layer) for layer in whole["layers"]]
    place = {name: number for number, layer in enumerate(layers) for name in layer}
    highest = [min(place[name] for name in row) for row in drawn]
    lowest = [max(place[name] for name in row) for row in drawn]
    assert len(drawn) > 5
    assert all(above < below for above, below in zip(lowest, highest[1:], strict=False))


def test_the_queries_of_the_layout_page_run_on_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with sitq.SyncTaskQueue(sitq.SQLiteBackend(path)):
        pass
    queries = [b.text for b in blocks(DOCS / "reference" / "sqlite-file.md") if b.language == "sql"]
    assert queries
    with closing(sqlite3.connect(path)) as database:
        for query in queries:
            database.execute(query).fetchall()


def test_the_layout_page_names_each_table_and_column(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with sitq.SyncTaskQueue(sitq.SQLiteBackend(path)):
        pass
    page = (DOCS / "reference" / "sqlite-file.md").read_text()
    with closing(sqlite3.connect(path)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_schema")]
        columns = database.execute(
            "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c "
            "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        ).fetchall()
    assert "tasks" in tables
    missing = [f"{table}.{column}" for table, column in columns if f"`{column}`" not in page]
    assert not missing


def test_the_glossary_is_sorted_and_says_each_word_once() -> None:
    page = (DOCS / "reference" / "glossary.md").read_text()
    words = re.findall(r"(?m)^\| ([a-z][^|]*) \|", page)[1:]
    assert words == sorted(set(words))
    references = re.findall(r"See \*([^*]+)\*", page)
    assert references
    assert set(references) <= set(words)


def test_a_newer_file_is_refused_as_the_page_on_versions_says(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with sitq.SyncTaskQueue(sitq.SQLiteBackend(path)):
        pass
    with closing(sqlite3.connect(path)) as database:
        (number,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {number + 1}")
    before = path.read_bytes()
    with (
        pytest.raises(sitq.BackendFormatError),
        sitq.SyncTaskQueue(sitq.SQLiteBackend(path)) as queue,
    ):
        queue.get_result(sitq.TaskId("x"), timeout=0)
    assert path.read_bytes() == before


def test_the_sessions_that_the_pages_name_are_those_of_nox() -> None:
    sessions = set(re.findall(r"(?m)^def (\w+)\(session", (ROOT / "noxfile.py").read_text()))
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    table = contributing.partition("## Check")[2].partition("\n## ")[0]
    named = {
        *re.findall(r"(?m)^\| `(\w+)` \|", table),
        *(name for page in PAGES for name in re.findall(r"nox -s (\w+)", page.read_text())),
    }
    assert "docs_site" in named
    assert named <= sessions
