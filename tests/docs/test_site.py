"""The check of the built site finds what is missing."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from tests.docs import site
from tests.docs.pages import ROOT

PAGE = """# Title of `it`

| a | b |
| --- | --- |
| 1 | 2 |

## A [section](other.md)

```text output
# no heading
```
"""
ARTICLE = """<article><h1>Title of <code>it</code><a class="headerlink">#</a></h1>
<table><tr><td>1<td>2</table>
<h2>A <a href="other.html">section</a></h2>
<pre><span># no</span> heading
</pre></article>"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        ("<h2>A", "<p>A", "headings"),
        ("table", "div", "tables"),
        ("# no", "no", "line 10: the text block"),
        ("article", "div", "headings"),
    ],
    ids=["whole", "section", "table", "code", "article"],
)
def test_what_a_page_has_and_its_html_has_not_is_reported(
    old: str, new: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "ROOT", tmp_path)
    page, built = tmp_path / "page.md", tmp_path / "page.html"
    page.write_text(PAGE)
    built.write_text(ARTICLE.replace(old, new))
    problems = site.missing_from(page, built)
    assert (problem is None) == (not problems)
    assert problem is None or problem in problems[0]


def test_a_name_that_the_reference_lacks_is_reported(tmp_path: Path) -> None:
    assert "sitq.TaskQueue is on no page of reference/python" in site.undocumented(tmp_path)


REFERENCE = ROOT / "docs" / "reference" / "python"
SHOWN = [
    name
    for path in sorted(REFERENCE.glob("*.rst"))
    for name in re.findall(r"(?m)^\.\. auto\w+:: (\S+)$", path.read_text())
]


def resolve(name: str) -> object:
    module, _, member = name.rpartition(".")
    return getattr(importlib.import_module(module), member)


def test_the_reference_shows_each_public_name_once() -> None:
    assert len(SHOWN) == len(set(SHOWN))
    for module in site.MODULES:
        for name in importlib.import_module(module).__all__:
            assert {f"sitq.{name}", f"{module}.{name}"} & set(SHOWN), f"{module}.{name}"


@pytest.mark.parametrize("name", SHOWN)
def test_a_name_that_the_reference_shows_is_there_and_described(name: str) -> None:
    found = resolve(name)
    assert inspect.getdoc(found) or not (inspect.isclass(found) or inspect.isroutine(found))


def test_each_page_of_the_reference_belongs_to_the_site() -> None:
    assert {path.suffix for path in REFERENCE.iterdir()} == {".rst"}
