"""Reads the Markdown pages: their code blocks, their links, and what they say is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "script"]

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(
    r"^```(?P<language>\w+)[ ]*(?P<rest>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    ``python`` belongs to the page's script, or is the file that its title names; ``bash run`` is
    run after that; ``text output`` is what the page prints.
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
