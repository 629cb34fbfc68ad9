"""The README's commands to install and to check are what CI runs and what a newcomer runs."""

from __future__ import annotations

import subprocess

import pytest

from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"
COMMANDS = [
    block.text.strip()
    for block in blocks(README)
    if block.language == "bash" and "run" not in block.words  # these run with the page
]


def test_the_readme_installs_and_checks_by_one_command_of_one_line_each() -> None:
    assert len(COMMANDS) == 2
    assert all("\n" not in command for command in COMMANDS)


def test_the_first_command_installs_the_checkout_and_runs_the_main_job() -> None:
    assert "pip install ." in COMMANDS[0]
    assert COMMANDS[0].endswith("examples/basic/01_end_to_end.py")


def test_ci_runs_the_second_command() -> None:
    assert f"({COMMANDS[1]})" in (ROOT / ".ci" / "run").read_text()


CI = (ROOT / ".ci" / "run").read_text()
FIRST, SECOND = "== 7 passed in 1.00s ==", "=== 1 failed, 6 passed in 2.00s (0:00:02) ==="


@pytest.mark.parametrize(
    ("command", "last", "code"),
    [
        (f"echo '{FIRST}'; echo 'nox > all is well'", FIRST, 0),
        (f"echo '{FIRST}'; echo '{SECOND}'; echo 'nox > bad'; exit 1", SECOND, 1),
        ("echo 'nox > no test has run'", "nox > no test has run", 1),
        ("echo 'nox > broken'; exit 3", "nox > broken", 3),
    ],
    ids=["passed", "failed", "none", "broken"],
)
def test_ci_ends_with_the_tests_closing_line_and_their_exit_code(
    command: str, last: str, code: int
) -> None:
    changed = CI.replace(f"({COMMANDS[1]})", f"({command})")
    assert changed != CI
    done = subprocess.run(
        ["bash", "-c", changed, str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == last
    assert done.returncode == code
