"""`sitq.connect`: a URL becomes a store, and no text shows more of it than its scheme."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sitq
from sitq import Backend, SQLiteBackend, TaskQueue, UsageError, ValidationError
from sitq.backends.memory import MemoryBackend

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///tasks.db", "tasks.db"),
        ("sqlite:///data/tasks.db", "data/tasks.db"),
        ("SQLite:////var/lib/tasks.db", "/var/lib/tasks.db"),
        ("sqlite:///a%20name%3F.db", "a name?.db"),
        ("sqlite:///:memory:", ":memory:"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert repr(sitq.connect(url)) == repr(SQLiteBackend(path))


def test_a_url_may_hold_the_option_of_the_file() -> None:
    backend = sitq.connect("sqlite:///tasks.db?synchronous=NORMAL")
    assert repr(backend) == repr(SQLiteBackend("tasks.db", synchronous="NORMAL"))


@pytest.mark.parametrize("url", ["memory:", "memory://", "Memory:"])
def test_a_url_names_a_store_in_memory(url: str) -> None:
    assert isinstance(sitq.connect(url), MemoryBackend)
    assert sitq.connect(url) is not sitq.connect(url)


@pytest.mark.anyio
async def test_what_comes_back_is_ready_for_a_queue(tmp_path: Path) -> None:
    async with TaskQueue(sitq.connect(f"sqlite:///{tmp_path}/q.db")) as queue:
        assert await queue.prune(0) == 0
    assert (tmp_path / "q.db").exists()


def test_connecting_creates_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sitq.connect("sqlite:///tasks.db")
    assert list(tmp_path.iterdir()) == []


WRONG = [
    ("", "no scheme"),
    ("tasks.db", "no scheme"),
    ("/var/lib/tasks.db", "no scheme"),
    ("://x", "no scheme"),
    ("sqlite:", "not a SQLite file"),
    ("sqlite://", "not a SQLite file"),
    ("sqlite:///", "not a SQLite file"),
    ("sqlite:tasks.db", "not a SQLite file"),
    (f"sqlite://{SECRET}/tasks.db", "not a SQLite file"),
    (f"sqlite:///tasks.db#{SECRET}", "not a SQLite file"),
    (f"sqlite:///tasks.db?{SECRET}=1", "the options are synchronous"),
    ("sqlite:///tasks.db?synchronous=FULL&synchronous=FULL", "each once"),
    (f"sqlite:///tasks.db?synchronous={SECRET}", "give FULL or NORMAL"),
    (f"sqlite://[{SECRET}/tasks.db", "malformed"),
    (f"memory:{SECRET}", "give memory:"),
    ("postgresql:", "give postgresql://"),
    (f"postgresql:{SECRET}", "give postgresql://"),
    (f"postgresql:/u:{SECRET}@host/d?x=1", "give postgresql://"),
    (f"postgresql://u:{SECRET}@host\u2100/d", "malformed"),
    (f"postgresql://u:{SECRET}@[host/d", "malformed"),
    (f"mysql://user:{SECRET}@host/db", "the scheme 'mysql' is unknown"),
    (f"sqlite+aiosqlite:///{SECRET}", r"the scheme 'sqlite\+aiosqlite' is unknown"),
    (f"user:{SECRET}@host/db", "its scheme is unknown"),
    (f"{SECRET}:x@host", "its scheme is unknown"),
]


@pytest.mark.parametrize(("url", "text"), WRONG)
def test_the_error_of_a_wrong_url_says_what_to_give_and_shows_no_secret(
    url: str, text: str
) -> None:
    with pytest.raises(ValidationError, match=text) as caught:
        sitq.connect(url)
    shown = "".join(traceback.format_exception(caught.value))
    messages = [line for line in shown.splitlines() if not line.startswith("    ")]
    assert SECRET not in "\n".join(messages)


@pytest.mark.parametrize("url", [None, 7, Path("tasks.db"), b"sqlite:///q.db"])
def test_what_is_no_text_is_refused(url: Any) -> None:
    with pytest.raises(ValidationError, match="give a text"):
        sitq.connect(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_missing_extra_says_what_to_install(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sitq.backends.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(UsageError, match=r'pip install "\.\[postgres\]"') as caught:
        sitq.connect(f"{scheme}://user:{SECRET}@host/db")
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


# -- third parties ---------------------------------------------------------------------------

PACKAGE = """
from sitq.backends.memory import MemoryBackend

class ShelfBackend(MemoryBackend):
    def __init__(self, url):
        super().__init__()
        self.url = url

def broken(url):
    return url
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third-party package, as pip installs it."""
    info = tmp_path / "sitq_shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sitq-shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sitq.backends]\n"
        "shelf = sitq_shelf:ShelfBackend\n"
        "broken = sitq_shelf:broken\n"
        "absent = sitq_shelf:nothing\n"
        "missing = sitq_missing:Backend\n"
        "sqlite = sitq_shelf:broken\n"
    )
    (tmp_path / "sitq_shelf.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sitq_shelf", raising=False)


@pytest.mark.usefixtures("installed")
class TestThirdParties:
    @pytest.mark.parametrize("url", ["shelf:tasks", f"Shelf://user:{SECRET}@host/tasks"])
    def test_an_installed_package_brings_a_scheme(self, url: str) -> None:
        backend: Backend = sitq.connect(url)
        assert type(backend).__name__ == "ShelfBackend"
        assert backend.url == url  # type: ignore[attr-defined]

    def test_it_is_named_where_a_scheme_is_unknown(self) -> None:
        with pytest.raises(ValidationError, match=r"memory:.*shelf:\.\.\."):
            sitq.connect("shelve://tasks")

    def test_ours_cannot_be_taken_over(self) -> None:
        assert isinstance(sitq.connect("sqlite:///tasks.db"), SQLiteBackend)

    @pytest.mark.parametrize("scheme", ["absent", "missing"])
    def test_a_package_that_cannot_be_loaded_is_named(self, scheme: str) -> None:
        with pytest.raises(UsageError, match="the package sitq-shelf cannot be loaded"):
            sitq.connect(f"{scheme}://{SECRET}")

    def test_what_is_no_store_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="give a store"):
            sitq.connect(f"broken:{SECRET}")


def test_the_store_of_postgresql_gets_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    room = ModuleType("sitq.backends.postgres")
    given: list[str] = []

    def make(url: str) -> Backend:
        given.append(url)
        return MemoryBackend()

    room.PostgresBackend = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sitq.backends.postgres", room)
    url = "postgresql:///tasks?host=/run/postgresql"
    sitq.connect(url)
    assert given == [url]
