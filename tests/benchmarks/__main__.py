"""Measure sitq: ``python -m tests.benchmarks [GROUP ...] [--quick] [--loop LOOP]``.

Ratios come first: each rate stands beside a floor of the raw driver (sqlite3, asyncpg) that was
measured in the same round at the same durability. Machines are shared and noisy, so each figure is
the median of several rounds, with the lowest and the highest beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import plot, postgres, report
from tests.benchmarks.cases import all_cases
from tests.benchmarks.measuring import LOOPS, Figures, Settings, measure
from tests.benchmarks.stores import DEFAULT, KINDS

__all__: list[str] = []

QUICK = Settings(rounds=1, scale=0.1, tasks_for_memory=20_000)


def main() -> None:
    """Measure, or read what was measured, and print the table."""
    options = _options()
    given, found = _read(options.read) if options.read else _measure(options)
    if options.json:
        report.as_json(found, given, options.json)
    if options.markdown:
        options.markdown.write_text(report.as_markdown(found, given))
    if options.svg:
        plot.draw(found, given, options.svg)


def _measure(options: argparse.Namespace) -> tuple[dict[str, str], list[Figures]]:
    settings = QUICK if options.quick else Settings(rounds=options.rounds)
    settings = replace(settings, store=options.store)
    if options.memory_tasks:
        settings = replace(settings, tasks_for_memory=options.memory_tasks)
    loops = list(LOOPS) if options.loop == "all" else [options.loop]
    given = report.conditions(settings.rounds, settings.store)
    if options.store == "postgres":
        given |= postgres.conditions()
    print(*(f"{name}: {text}" for name, text in given.items()), "", sep="\n")
    if options.quick:
        print("One short round is a first look: repeat a part without --quick before you trust it.")
    print(report.HEAD)
    found = []
    for case in all_cases(settings):
        if options.groups and case.group not in options.groups:
            continue
        for figures in measure(case, loops, settings):
            found.append(figures)
            print(report.line(figures), flush=True)
    return given, found


def _read(files: list[Path]) -> tuple[dict[str, str], list[Figures]]:
    """Put the parts of one run together, in their order."""
    parts = [json.loads(file.read_text()) for file in files]
    found = [Figures.from_json(case) for part in parts for case in part["cases"]]
    print(report.HEAD, *map(report.line, found), sep="\n")
    return parts[0]["conditions"], found


def _options() -> argparse.Namespace:
    groups = sorted({case.group for case in all_cases(QUICK)})
    parser = argparse.ArgumentParser(prog="tests.benchmarks", description=__doc__)
    names = ", ".join(groups)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{names}; all unless given")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=[*LOOPS, "all"], default="asyncio")
    parser.add_argument("--store", choices=sorted(KINDS), default=DEFAULT)
    parser.add_argument("--memory-tasks", type=int, help="1000000 for the whole goal")
    parser.add_argument("--read", type=Path, nargs="+", help="measure nothing, read these files")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--svg", type=Path, help="draw the figures there (needs matplotlib)")
    options = parser.parse_args()
    if unknown := set(options.groups).difference(groups):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {names}")
    return options


if __name__ == "__main__":
    main()
