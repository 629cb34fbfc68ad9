"""The table of other queues: medians with the lowest and the highest, and the floor."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tests.benchmarks import report

__all__ = ["Found", "Package", "is_installed", "share", "table"]


class Package:
    """A queue to compare with, as the table tells of it.

    Args:
        name: the package.
        settings: what is not as the package has it by itself.
        promises: what becomes of results and of tasks whose worker dies.
        share: the share of the tasks that is enough for it, if it is slow.
    """

    def __init__(self, name: str, settings: str, promises: str, share: float = 1.0) -> None:
        self.name = name
        self.settings = settings
        self.promises = promises
        self.share = share
        self.version = ""


# What was measured of a queue, or (None) of the floor.
Found = dict[tuple[object, str], list[float]]


def share(part: float, what: str, count: int) -> int:
    """How many tasks to measure with."""
    return max(20, int(count * part * (0.05 if what == "round_trip" else 1)))


def is_installed(peer: Package) -> bool:
    """Look for a package, and note its version."""
    peer.version = report.version_of(peer.name)
    return peer.version != report.MISSING


def table(
    peers: Sequence[Package],
    work: Mapping[str, str],
    found: Found,
    floor: tuple[str, str, str],
) -> list[str]:
    """The lines of a table, the floor last."""
    heads = ("queue", "settings", *work.values(), "a worker that dies; results")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for peer in (*peers, None):
        name, settings, promises = (
            floor if peer is None else (f"{peer.name} {peer.version}", peer.settings, peer.promises)
        )
        cells = [_cell(found.get((peer, what))) for what in work]
        lines.append("| " + " | ".join([name.strip(), settings, *cells, promises]) + " |")
    return lines


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    middle = report.number(statistics.median(values))
    return f"{middle} ({report.number(min(values))} to {report.number(max(values))})"
