"""The page of promises names tests, and those tests are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "explanation" / "promises.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
SECTIONS = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
NOT_PROMISED = "What it does not promise"


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_a_promise_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    assert name.startswith("test_")


@pytest.mark.parametrize("title", sorted(set(SECTIONS) - {NOT_PROMISED}))
def test_each_promise_names_the_tests_that_hold_it(title: str) -> None:
    listed = SECTIONS[title].partition("Held by:\n\n")[2].strip().splitlines()
    assert listed
    assert all(re.fullmatch(r"- `[\w/]+\.py::\w+`", line) for line in listed)


def test_the_page_speaks_of_each_subject() -> None:
    expected = {"Delivery", "Completion", "Order", "Clocks", "Cancellation", "Shutdown", "limits"}
    assert expected <= set(" ".join(SECTIONS).split())
    assert NOT_PROMISED in SECTIONS
