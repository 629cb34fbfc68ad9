"""Workers in processes of their own, as the benchmarks lead them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Process", "alone", "rss_of", "worker"]

P = ParamSpec("P")
R = TypeVar("R")


class Process:
    """A worker's process, led through its input."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running
        self.expect("ready")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._running.pid

    def begin(self) -> None:
        """Have it work."""
        self.tell()
        self.expect("working")

    def ask(self) -> tuple[float, int]:
        """The share of a core since the last question, in percent, and how many tasks it began."""
        self.tell()
        share, begun = self._read().split()
        return float(share), int(begun)

    def tell(self) -> None:
        """Send a line."""
        assert self._running.stdin is not None
        self._running.stdin.write("\n")
        self._running.stdin.flush()

    def _read(self) -> str:
        assert self._running.stdout is not None
        return self._running.stdout.readline().strip()

    def expect(self, word: str) -> None:
        """Wait for a word of its own."""
        found = self._read()
        if found != word:
            raise AssertionError(f"a worker said {found!r} instead of {word!r}")


@contextmanager
def worker(store: str, loop: str, queues: str = "default") -> Iterator[Process]:
    """A worker that is ready to work; it ends with the context."""
    command = [sys.executable, "-m", "tests.benchmarks.worker", store, loop, queues]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield Process(running)
        finally:
            assert running.stdin is not None
            running.stdin.close()


def alone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a new process, whose memory nobody has used before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *args, **kwargs).result()


def rss_of(pid: int) -> float:
    """The memory that a process has in use, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("this system does not tell a process's memory")
