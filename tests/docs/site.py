"""Checks a built site: each page has all its sections, code and tables, and each name is there."""

from __future__ import annotations

import importlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT, blocks

__all__ = ["main"]

DOCS = ROOT / "docs"
# Where public names are imported from; what the reference of `sitq` shows may be in others as well.
MODULES = (
    "sitq",
    "sitq.backends.memory",
    "sitq.backends.postgres",
    "sitq.backends.sqlite",
    "sitq.errors",
    "sitq.models",
    "sitq.protocols",
    "sitq.testing",
    "sitq.transactions",
)
_VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


class _Article(HTMLParser):
    """What the article of a page shows: its headings, code, tables and anchors."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.code: list[str] = []
        self.tables = 0
        self.anchors: set[str] = set()
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what begins."""
        values = dict(attrs)
        if values.get("id"):
            self.anchors.add(values["id"] or "")
        if tag in _VOID:
            return
        if tag == "a" and "headerlink" in (values.get("class") or ""):
            tag = "headerlink"
        self._open.append(tag)
        self.tables += tag == "table"
        if re.fullmatch(r"h[1-6]|pre", tag):
            self._text = []

    def handle_endtag(self, tag: str) -> None:
        """Note what ends."""
        if tag in _VOID or not self._open:
            return
        tag = self._open.pop()
        if "article" not in self._open:
            return
        text = "".join(self._text)
        if tag == "pre":
            self.code.append(text)
        elif re.fullmatch(r"h[1-6]", tag):
            self.headings.append(text.strip())

    def handle_data(self, data: str) -> None:
        """Gather the text of a heading or of code."""
        if "headerlink" not in self._open:
            self._text.append(data)


def headings(source: str) -> list[str]:
    """Return the headings of a Markdown page, as a reader sees them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", source)
    return [
        re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", heading).replace("`", "").strip()
        for heading in re.findall(r"(?m)^#+ (.+)$", text)
    ]


def missing_from(page: Path, built: Path) -> list[str]:
    """Return what a page has and its HTML has not."""
    source = page.read_text()
    article = _Article(built.read_text())
    problems = []
    if headings(source) != article.headings:
        problems.append(f"headings: {headings(source)} are {article.headings}")
    shown = ["\n".join(code.split()) for code in article.code]
    problems += [
        f"line {block.line}: the {block.language} block"
        for block in blocks(page)
        if "\n".join(block.text.split()) not in shown
    ]
    tables = len(re.findall(r"(?m)^\|( ?:?-+:? ?\|)+$", source))
    if tables != article.tables:
        problems.append(f"{tables} tables are {article.tables}")
    return [f"{page.relative_to(ROOT)}: {problem}" for problem in problems]


def undocumented(site: Path) -> list[str]:
    """Return the public names that the reference does not describe."""
    pages = site.glob("reference/python/*.html")
    anchors = {anchor for page in pages for anchor in _Article(page.read_text()).anchors}
    return [
        f"{module}.{name} is on no page of reference/python"
        for module in MODULES
        for name in set(importlib.import_module(module).__all__)
        if not anchors & {f"{module}.{name}", f"sitq.{name}"}
    ]


def faults_of_manifests() -> list[str]:
    """Return what is wrong with the manifests on the page about deployment."""
    yaml: Any = importlib.import_module("yaml")  # a part of what the site is built with
    page = DOCS / "how-to" / "deployment.md"
    problems = []
    for block in blocks(page):
        if block.language != "yaml":
            continue
        for manifest in yaml.safe_load_all(block.text):
            name, spec = manifest["metadata"]["name"], manifest["spec"]
            labels = spec["template"].get("metadata", {}).get("labels")
            if spec.get("selector", {}).get("matchLabels") != labels:
                problems.append(f"{name}: the selector is none of the template's labels")
            for container in spec["template"]["spec"]["containers"]:
                secrets = [one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"]]
                problems += [
                    f"{name}: no command makes the secret {secret}"
                    for secret in secrets
                    if f"secret generic {secret} " not in page.read_text()
                ]
    return problems


def main(site: Path) -> None:
    """Check the site in a folder.

    Raises:
        SystemExit: something is missing.
    """
    pages = sorted(DOCS.glob("**/*.md"))
    problems = undocumented(site) + faults_of_manifests()
    for page in pages:
        problems += missing_from(page, site / page.relative_to(DOCS).with_suffix(".html"))
    if not (site / "searchindex.js").exists():
        problems.append("there is no search")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(pages)} pages and {len(MODULES)} modules are complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
