"""A network namespace for processes, and the cable between it and this one, which may be cut."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from typing import Literal

import pytest

__all__ = ["Cut", "Network"]

# The cable is pulled out at this end, or it takes packets and passes none on.
Cut = Literal["pulled", "silent"]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


class Network:
    """Skips the test where namespaces may not be made."""

    def __init__(self) -> None:
        if not (shutil.which("ip") and shutil.which("tc")):
            pytest.skip("there is no 'ip' or no 'tc' here (Debian's package iproute2)")
        if os.geteuid() != 0:
            pytest.skip("only root may make network namespaces")
        name = f"sitq{secrets.token_hex(3)}"
        subnet = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250) + 1}"
        self.address, self._name = f"{subnet}.1", name
        self._here, self._there = f"{name}a", f"{name}b"
        self.through = ("ip", "netns", "exec", name)
        try:
            run("ip", "netns", "add", name)
            run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there)
            run("ip", "link", "set", self._there, "netns", name)
        except subprocess.CalledProcessError as error:
            self.remove()
            reason = error.stderr.decode().strip()
            pytest.skip(f"no right to make network namespaces here: {reason}")
        run("ip", "address", "add", f"{self.address}/24", "dev", self._here)
        run("ip", "link", "set", self._here, "up")
        run(*self.through, "ip", "address", "add", f"{subnet}.2/24", "dev", self._there)
        run(*self.through, "ip", "link", "set", self._there, "up")

    def cut(self, how: Cut) -> None:
        """Let nothing through; nobody is told of it."""
        if how == "pulled":
            run("ip", "link", "set", self._here, "down")
        else:
            for side in self._sides():
                # A bucket that is smaller than any packet.
                run(*side, *["root", "tbf", "rate", "8bit", "burst", "1", "latency", "1ms"])

    def mend(self, how: Cut) -> None:
        """Let everything through again."""
        if how == "pulled":
            run("ip", "link", "set", self._here, "up")
        else:
            for side in self._sides("del"):
                run(*side, "root")

    def _sides(self, verb: str = "add") -> list[tuple[str, ...]]:
        return [
            ("tc", "qdisc", verb, "dev", self._here),
            (*self.through, "tc", "qdisc", verb, "dev", self._there),
        ]

    def remove(self) -> None:
        """Leave nothing behind; the cable goes with its other end."""
        for words in (("link", "delete", self._here), ("netns", "delete", self._name)):
            subprocess.run(("ip", *words), check=False, capture_output=True, timeout=20)
