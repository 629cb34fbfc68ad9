"""What the README and the docs show is true: every block runs, every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, write

ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHONWARNINGS": "error",
    "PYTEST_ADDOPTS": "-p no:asyncio",  # the pages use the plugin of anyio
}


def name(page: Path) -> str:
    """Name a page in the test's id."""
    return page.relative_to(ROOT).as_posix()


# What may stand on stderr: the log of tasks that fail, and of workers that are killed, on purpose.
EXPECTED_LOG = re.compile(
    r"""
    (?:
        task [ ] \S+: [ ] attempt [ ] \d+ [ ] of .* [ ] failed .*\n (?: (?!task [ ]) .*\n )*
      | \d+ [ ] tasks [ ] of [ ] lost [ ] workers [ ] were [ ] reclaimed\n
      | \S* bash: [ ] line [ ] \d+: [ ]+ \d+ [ ] Killed .*\n
    )*
    """,
    re.VERBOSE,
)


def run(command: list[str], folder: Path) -> tuple[str, str]:
    """Run a command that has to succeed; return what it printed and what it logged."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert EXPECTED_LOG.fullmatch(done.stderr), f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path
) -> None:
    path = write(page, tmp_path)
    commands = [[sys.executable, str(path)]] if path else []
    commands += [
        ["bash", "-euc", block.text]
        for block in blocks(page)
        if block.language == "bash" and "run" in block.words
    ]
    runs = [run(command, tmp_path) for command in commands]
    printed = "".join(stdout for stdout, _ in runs)
    logged = "".join(stderr for _, stderr in runs)
    for block in blocks(page):
        if block.language == "text" and "output" in block.words:
            assert block.text in printed
        elif block.language == "text" and "log" in block.words:
            assert block.text in logged


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_file_that_a_page_shows_is_used_by_the_page(page: Path) -> None:
    """A titled block is run by a command of its page, or imported by another block."""
    rest = "\n".join(b.text for b in blocks(page) if b.language in {"bash", "python"})
    for block in blocks(page):
        if block.title is not None and block.language == "python":
            stem = Path(block.title).stem
            used = rf"(?m)python {stem}\.py|pytest .*{stem}\.py|^\s*(from|import) {stem}\b"
            assert re.search(used, rest), f"{name(page)}: nothing runs {block.title}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_shell_commands_of_a_page_are_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            checked = subprocess.run(
                ["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False
            )
            assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_uses_only_the_languages_that_are_checked_here(page: Path) -> None:
    known = {"bash", "mermaid", "python", "sql", "text"}
    if page.name == "deployment.md":
        known |= {"dockerfile", "ini", "yaml"}  # by test_deployment.py and site.py
    assert {block.language for block in blocks(page)} <= known
    assert page.read_text().count("```") == 2 * len(list(blocks(page)))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name(page)}: {target}"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_installs_the_package_of_the_same_name_from_the_index(page: Path) -> None:
    assert not re.search(r"(pip3?|uv|pipx|poetry) +(install|add) +[\"']?sitq", page.read_text())


def test_every_page_is_linked_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text())
    }
    missing = set(ROOT.glob("docs/**/*.md")) - linked - {index}
    assert not missing
