"""The table of what was measured: as text, as Markdown, as JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from tests.benchmarks.stores import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.measuring import Figures

__all__ = [
    "HEAD",
    "MISSING",
    "as_json",
    "as_markdown",
    "conditions",
    "line",
    "number",
    "version_of",
]

MISSING = "not installed"
_MARKS = {True: "yes", False: "no", None: ""}
_COLUMNS = ("ratio", "goal", "met", "median", "min", "max", "floor", "unit")


def conditions(rounds: int, store: str = DEFAULT) -> dict[str, str]:
    """When and on what was measured; no name of the machine."""
    driver = "asyncpg" if store == "postgres" else "aiosqlite"
    packages = ("anyio", "trio", "uvloop", "pydantic", "msgpack", driver)
    versions = ", ".join(f"{name} {version_of(name)}" for name in packages)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": versions,
        "rounds": str(rounds),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def version_of(package: str) -> str:
    """The version of a package, or that there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def number(value: float | None) -> str:
    """Three digits that matter, or whole thousands."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def cells(figures: Figures) -> list[str]:
    """The columns after the name."""
    return [
        number(figures.ratio),
        str(figures.goal),
        _MARKS[figures.is_met],
        number(figures.median),
        number(min(figures.values)),
        number(max(figures.values)),
        number(figures.floor),
        figures.unit,
    ]


def _text(name: str, loop: str, columns: list[str] | tuple[str, ...]) -> str:
    ratio, goal, met, *numbers, unit = columns
    shown = "".join(f"{each:>9}" for each in numbers)
    return f"{name:<62} {loop:<8}{ratio:>7} {goal:>10} {met:<4}{shown}  {unit}"


_LEGEND = (
    "ratio: the median of what was measured in each round, divided by that round's floor; "
    "a goal with an x is one for the ratio, the others are for the median"
)
HEAD = f"{_LEGEND}\n\n{_text('what', 'loop', _COLUMNS)}"


def line(figures: Figures) -> str:
    """One line of the table as text."""
    return _text(figures.name, figures.loop, cells(figures))


def as_markdown(found: list[Figures], given: dict[str, str]) -> str:
    """The table as Markdown."""
    columns = ("what", "loop", *_COLUMNS)
    lines = [f"{', '.join(f'{name} {text}' for name, text in given.items())}", "", _LEGEND, ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for figures in found:
        lines.append("| " + " | ".join([figures.name, figures.loop, *cells(figures)]) + " |")
    return "\n".join(lines) + "\n"


def as_json(found: list[Figures], given: dict[str, str], path: Path) -> None:
    """Write all of it, each round too."""
    content = {"conditions": given, "cases": [figures.as_json() for figures in found]}
    path.write_text(json.dumps(content, indent=1) + "\n")
