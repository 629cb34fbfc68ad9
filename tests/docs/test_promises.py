"""Each promise is named with the tests that check it, and those tests are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "explanation"
TITLES = re.findall(r"(?m)^## (.+)$", (FOLDER / "promises.md").read_text())
NOT_PROMISED = "What it does not promise"
# A row is `| promise | test |`; the first cell is empty where the row above has the promise.
ROWS = re.findall(
    r"(?m)^\| (?:\[(.+)\]\(promises\.md#[\w-]+\))? ?\| (.+) \|$",
    (FOLDER / "promise-tests.md").read_text().partition("| --- | --- |\n")[2],
)
NAMED = [re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`", cell) for _, cell in ROWS]


def test_each_promise_is_listed_with_its_tests_in_the_order_of_the_page() -> None:
    assert [title for title, _ in ROWS if title] == [t for t in TITLES if t != NOT_PROMISED]
    assert NOT_PROMISED in TITLES
    assert ROWS[0][0]


def test_each_row_of_the_tests_names_one_test() -> None:
    page = (FOLDER / "promise-tests.md").read_text()
    assert len(ROWS) == page.count("\n|") - 2
    assert all(NAMED)


@pytest.mark.parametrize(("path", "name"), [match.groups() for match in NAMED if match])
def test_a_test_that_a_promise_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_page_speaks_of_each_subject() -> None:
    expected = {"Delivery", "Completion", "Order", "Clocks", "Cancellation", "Shutdown", "limits"}
    assert expected <= set(" ".join(TITLES).split())
