"""The figures as a drawing: rates as bars beside their floors, for each loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.measuring import Figures

__all__ = ["draw"]

_COLOURS = {"asyncio": "#33658a", "uvloop": "#55a630", "trio": "#f26419"}
_FLOOR = "#b0b0b0"


def draw(found: list[Figures], given: dict[str, str], path: Path) -> None:
    """Draw what has a floor, with the spread of all rounds."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file, whoever draws them.
    mpl.rcParams["svg.hashsalt"] = "sitq"
    import matplotlib.pyplot as plt

    rates = [figures for figures in found if figures.floors and figures.unit == "tasks/s"]
    names = list(dict.fromkeys(figures.name for figures in rates))
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.9 * len(names)))
    labelled: set[str] = set()
    for place, name in enumerate(names):
        here = [figures for figures in rates if figures.name == name]
        height = 0.8 / (len(here) + 1)
        floors = [floor for figures in here for floor in figures.floors]
        bars = [("floor", here[0].floor or 0.0, floors, _FLOOR)]
        bars += [(each.loop, each.median, each.values, _COLOURS[each.loop]) for each in here]
        for index, (label, middle, values, colour) in enumerate(bars):
            axes.barh(
                place + (index - len(here) / 2) * height,
                middle,
                height,
                color=colour,
                label=None if label in labelled else label,
                xerr=[[middle - min(values)], [max(values) - middle]],
                error_kw={"elinewidth": 0.8, "capsize": 2},
            )
            labelled.add(label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("a second: median of the rounds, with the lowest and the highest")
    axes.set_title(f"sitq, {given['date']}, {given['machine']}, Python {given['python']}")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
