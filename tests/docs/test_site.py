"""The check of the built site finds what is missing."""

from __future__ import annotations

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


def test_each_page_of_the_reference_belongs_to_the_site() -> None:
    names = {path.suffix for path in (ROOT / "docs" / "reference" / "python").iterdir()}
    assert names == {".rst"}
