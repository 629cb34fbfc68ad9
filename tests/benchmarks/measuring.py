"""What a measurement is: rounds, each beside its floor, and what was to be reached."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import anyio

from tests.benchmarks.stores import DEFAULT, forget

__all__ = ["LOOPS", "Case", "Figures", "Goal", "Settings", "measure", "run_on"]

LOOPS = ("asyncio", "uvloop", "trio")
# What trio has to reach of asyncio's rate.
TRIO_SHARE = 0.6


@dataclass(frozen=True)
class Goal:
    """What is to be reached: a ratio to the floor, or a figure; a bound from below or above."""

    ratio: float | None = None
    figure: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        if self.ratio is not None:
            return f"{sign} {self.ratio:g} x"
        return "" if self.figure is None else f"{sign} {self.figure:,g}"

    def is_met(self, ratio: float | None, figure: float) -> bool | None:
        """Tell if a measurement reaches it; ``None`` if there is no goal."""
        found, wanted = (ratio, self.ratio) if self.ratio is not None else (figure, self.figure)
        if found is None or wanted is None:
            return None
        return found <= wanted if self.at_most else found >= wanted


@dataclass(frozen=True)
class Settings:
    """How much to measure."""

    rounds: int = 5
    scale: float = 1.0
    store: str = DEFAULT
    tasks_for_memory: int = 300_000

    def count(self, tasks: int) -> int:
        """So many tasks, in hundreds."""
        return max(200, int(tasks * self.scale) // 100 * 100)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    ``work`` measures once, in a fresh folder, on a loop; ``floor`` what it is compared with.
    """

    group: str
    name: str
    unit: str
    work: Callable[[Path, str], float]
    goal: Goal = field(default_factory=Goal)
    floor: Callable[[Path], float] | None = None
    rounds: int | None = None
    loops: tuple[str, ...] = LOOPS


@dataclass
class Figures:
    """What was measured of a case on one loop, a value for each round."""

    group: str
    name: str
    unit: str
    loop: str
    goal: Goal
    values: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def floor(self) -> float | None:
        """The middle floor."""
        return statistics.median(self.floors) if self.floors else None

    @property
    def ratio(self) -> float | None:
        """The middle of the ratios, each of a value to the floor of its own round."""
        if not self.floors:
            return None
        pairs = zip(self.values, self.floors, strict=True)
        return statistics.median(value / floor for value, floor in pairs)

    @property
    def is_met(self) -> bool | None:
        """Tell if the goal is reached; ``None`` without one."""
        return self.goal.is_met(self.ratio, self.median)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """What `as_json` gave."""
        names = ("group", "name", "unit", "loop", "values", "floors")
        return cls(goal=Goal(**content["goal"]), **{name: content[name] for name in names})

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "loop": self.loop,
            "goal": asdict(self.goal),
            "is_met": self.is_met,
            "ratio": self.ratio,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "floor": self.floor,
            "values": self.values,
            "floors": self.floors,
        }


def run_on(loop: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a coroutine function on a loop."""
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    backend = "asyncio" if loop == "uvloop" else loop
    return anyio.run(work, *arguments, backend=backend, backend_options=options)


def measure(case: Case, loops: list[str], settings: Settings) -> list[Figures]:
    """Measure a case in rounds: each has the floor anew, then every loop.

    The machine may slow down meanwhile: what is compared is measured side by side.
    """
    found = {
        loop: Figures(case.group, case.name, case.unit, loop, case.goal)
        for loop in loops
        if loop in case.loops
    }
    for _ in range(min(settings.rounds, case.rounds or settings.rounds)):
        floor = _once(case.floor, settings) if case.floor else None
        for loop, figures in found.items():
            figures.values.append(_once(lambda place, loop=loop: case.work(place, loop), settings))  # type: ignore[misc]
            if floor is not None:
                figures.floors.append(floor)
    return list(found.values())


def _once(work: Callable[[Path], float], settings: Settings) -> float:
    gc.collect()
    try:
        with tempfile.TemporaryDirectory(
            prefix="sitq-bench-", ignore_cleanup_errors=True
        ) as folder:
            return work(Path(folder))
    finally:
        forget(settings.store)
