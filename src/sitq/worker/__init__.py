"""The worker: reserve, run, report."""

from __future__ import annotations

from sitq.worker._worker import Worker

__all__ = ["Worker"]
