"""The numbered examples run as a user runs them: as scripts, from any folder, without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

EXPECTED = {
    "01_end_to_end.py": r"""enqueued: add is pending
the worker ran 2 tasks
add is success: 3
total is success: 13\.95
""",
    "02_eta_delayed_execution.py": r"""the last is pending, its eta is kept in UTC
  reminder: first: at once
(?s:.*)  reminder: second: after a second
(?s:.*)  reminder: third: at a moment
(?s:.*)'third: at a moment' started before its eta: False
refused: eta: .*naive.*
""",
    "03_bounded_concurrency.py": r"""40 tasks ran, the sum of their pages is 380
at most 4 ran at the same time
one after the other takes at least 2 s; this took \d+\.\d s
""",
    "04_failures_and_tracebacks.py": r"""status: failed
error: RuntimeError: no port: eighty
traceback, the task's own frames:
(?s:.*)ValueError: invalid literal(?s:.*)    RuntimeError: no port: eighty
asking for its value raises TaskFailedError: .*no port: eighty
flaky: 'done in attempt 3', attempts: 3
the worker lives: 42
""",
    "05_sync_client_with_worker.py": r"""resized: Picture\(name='cat', size=\(400, 300\)\)
slug: tasks-without-a-broker
the worker has stopped
""",
    "06_resources.py": r"""the shop opens
apple: 7 left
pear: 3 left
the shop closes
a test gives a shop of its own: \[\('plum', 1\)\]
""",
    "07_admin.py": r"""failed: 3
the last one, attempt 1: ConnectionError: no answer from smtp\.example\.com
mail: 1 due, 0 ran, paused: the mail server is down
would be retried: 3
retried: 3
retried once more: 0
a worker is active and serves \('mail',\)
succeeded: 4
deleted: 3
""",
}


def run(path: Path, folder: Path, *arguments: str) -> str:
    """Run a script in an empty folder; return what it printed."""
    work, temporary = folder / "work", folder / "tmp"
    work.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(work.iterdir()) == []
    assert list(temporary.iterdir()) == []
    return done.stdout


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_prints_what_it_shows_and_leaves_nothing_behind(
    name: str, tmp_path: Path
) -> None:
    printed = run(EXAMPLES / "basic" / name, tmp_path)
    assert re.fullmatch(EXPECTED[name], printed), printed


def test_the_first_example_prints_the_same_on_trio(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "basic" / "01_end_to_end.py", tmp_path, "trio")
    assert re.fullmatch(EXPECTED["01_end_to_end.py"], printed), printed


def test_no_example_is_left_out() -> None:
    assert {path.name for path in (EXAMPLES / "basic").glob("*.py")} == set(EXPECTED)


def test_the_examples_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"({path.name})" in page
    for path in EXAMPLES.glob("basic/*.py"):
        assert f"({path.relative_to(EXAMPLES).as_posix()})" in page
