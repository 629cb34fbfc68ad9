"""What a page says that sitq logs or raises is a text of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import PAGES, ROOT, blocks

PLACEHOLDER = re.compile(r"%[-\d.]*[sdrgf]|\0")  # of a format, and of an f-string


def literals(tree: ast.AST) -> list[str]:
    """Return the texts of a module; what an f-string fills in is a NUL."""
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {part for node in joined for part in node.values}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts
    ]
    return texts + [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        for node in joined
    ]


@cache
def patterns() -> list[re.Pattern[str]]:
    """Return a pattern for each text of the code that has three words of its own."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    texts = {text for tree in trees for text in literals(tree)}
    pieces = [PLACEHOLDER.split(text) for text in sorted(texts)]
    return [
        re.compile(".*".join(map(re.escape, parts)))
        for parts in pieces
        if len(re.findall(r"[a-z]{2,}", " ".join(parts))) >= 3
    ]


def is_a_text_of_the_code(message: str) -> bool:
    """Return whether the code has the message, or a format of it."""
    return any(pattern.fullmatch(message) for pattern in patterns())


LOGGED = [
    (page.relative_to(ROOT).as_posix(), message)
    for page in PAGES
    for message in [
        *re.findall(r"(?m)^\| `(?:ERROR|WARNING|INFO)` \| `([^`]+)` \|", page.read_text()),
        *(
            line
            for block in blocks(page)
            if {"text", "log"} <= {block.language, *block.words}
            for line in block.text.splitlines()
        ),
    ]
]


@pytest.mark.parametrize(("page", "message"), LOGGED)
def test_a_log_line_that_a_page_shows_is_a_text_of_the_code(page: str, message: str) -> None:
    assert is_a_text_of_the_code(message), f"{page}: nothing logs {message!r}"


QUOTED = [
    (page.relative_to(ROOT).as_posix(), text)
    for page in PAGES
    if page.name != "CHANGELOG.md"  # which quotes what is gone
    for prose in [re.sub(r"(?ms)^```.*?^```$|`[^`]*`", "", page.read_text())]
    for text in re.findall(r'"([^"]+)"', re.sub(r"\s+", " ", prose))
    if len(text.split()) >= 5
]


@pytest.mark.parametrize(("page", "text"), QUOTED)
def test_an_error_that_a_page_quotes_is_a_text_of_the_code(page: str, text: str) -> None:
    is_there = is_a_text_of_the_code(text) or is_a_text_of_the_code(f"{text}; ")  # a part of one
    assert is_there, f"{page}: nothing says {text!r}"


def test_a_text_that_the_code_does_not_have_is_noticed() -> None:
    assert LOGGED
    assert QUOTED
    assert not is_a_text_of_the_code("task 1: attempt 1 of f has collapsed (ValueError)")


LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR"}


def calls_of_the_worker() -> list[tuple[str, ast.Call, dict[str, str]]]:
    """Return the log calls of the worker with their places, and the texts of names."""
    calls = []
    for path in sorted((ROOT / "src" / "sitq" / "worker").glob("*.py")):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            texts = {
                target.id: node.value.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            calls += [
                (f"{path.name}:{node.lineno}", node, texts)
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_log"
                and node.func.attr in LEVELS
            ]
    return calls


def test_each_log_call_of_the_worker_has_fields() -> None:
    calls = calls_of_the_worker()
    assert len(calls) > 20
    for place, call, _ in calls:
        assert "extra" in [keyword.arg for keyword in call.keywords], place


def test_the_page_about_logging_has_each_line_of_the_worker() -> None:
    page = (ROOT / "docs" / "how-to" / "logging.md").read_text()
    rows = re.findall(r"(?m)^\| `(ERROR|WARNING|INFO)` \| `([^`]+)` \|", page)
    checked = 0
    for place, call, texts in calls_of_the_worker():
        first = call.args[0]
        text = texts.get(first.id) if isinstance(first, ast.Name) else ast.literal_eval(first)
        if text in {None, "%s"}:
            continue
        assert isinstance(text, str)
        pattern = ".*".join(map(re.escape, PLACEHOLDER.split(text)))
        level = LEVELS[call.func.attr] if isinstance(call.func, ast.Attribute) else ""
        found = [row for row in rows if row[0] == level and re.fullmatch(pattern, row[1])]
        assert found, f"{place}: {text}"
        checked += 1
    assert checked > 20


TROUBLE = ROOT / "docs" / "how-to" / "troubleshooting.md"
SYMPTOMS = [
    message
    for table in re.findall(r"(?m)^\| message .+\n\| --- .+\n((?:\| .+\n)+)", TROUBLE.read_text())
    for message in re.findall(r"(?m)^\| `([^`]+)` \|", table)
]


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """Return the texts of the code, each on a line, with a NUL for what is filled in."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    return tuple(PLACEHOLDER.sub("\0", text) for tree in trees for text in literals(tree))


def parts_of(message: str) -> list[str]:
    """Return what a message says itself: words in capitals stand for what differs."""
    parts = re.split(r"\b[A-Z]+\b(?!_)", message)
    # A line may be made of several texts: of what failed and why, say.
    return [part.strip(" ,:;(") for text in parts for part in re.split(r"; |, and |: ", text)]


@pytest.mark.parametrize("message", SYMPTOMS)
def test_a_symptom_is_made_of_texts_of_the_code(message: str) -> None:
    if is_a_text_of_the_code(message):
        return
    parts = [part for part in parts_of(message) if len(part) > 1]
    assert parts
    for part in parts:
        assert any(part in text for text in texts_of_the_code()), f"nothing says {part!r}"


def test_a_symptom_that_the_code_does_not_have_is_noticed() -> None:
    assert len(SYMPTOMS) > 30
    parts = parts_of("task ID has collapsed: ERROR")
    assert not all(any(part in text for text in texts_of_the_code()) for part in parts)
