"""The reference model of a store, in the memory of one process; also for users' tests.

It is the reference implementation: other stores behave like it.
"""

from __future__ import annotations

from sitq.backends.memory._backend import MemoryBackend

__all__ = ["MemoryBackend"]
