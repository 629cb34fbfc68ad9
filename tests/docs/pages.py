"""Reads the Markdown pages: their code blocks, their links, and what they say is printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "script", "write"]

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "examples" / "README.md", *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(
    r"^```(?P<language>\w+)[ ]*(?P<rest>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    ``python`` belongs to the page's script, or is the file that its title names; ``bash run`` is
    run after that; ``text output`` is what the page prints, and ``text log`` what it logs.
    """

    language: str
    words: tuple[str, ...]
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Read a page's fenced blocks."""
    source = page.read_text()
    for match in _FENCE.finditer(source):
        title = _TITLE.search(match["rest"])
        yield Block(
            language=match["language"],
            words=tuple(match["rest"].split()),
            title=title[1] if title else None,
            text=match["text"],
            line=source.count("\n", 0, match.start()) + 2,
        )


def script(page: Path) -> str:
    """Join a page's untitled Python blocks; each line keeps its number on the page."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and block.title is None:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.text.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def write(page: Path, folder: Path) -> Path | None:
    """Write a page's files into a folder; return the path of its script if it has one."""
    for block in blocks(page):
        if block.language == "python" and block.title is not None:
            (folder / block.title).write_text(block.text)
    source = script(page)
    if not source:
        return None
    path = folder / "page.py"
    path.write_text(source)
    return path


def main(folder: Path) -> None:
    """Write each page that has code into a folder of its own, for the type checker."""
    for page in PAGES:
        target = folder / page.relative_to(ROOT).with_suffix("")
        target.mkdir(parents=True)
        write(page, target)
        if not list(target.iterdir()):
            target.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
