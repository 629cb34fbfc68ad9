"""The reference model of a store, in the memory of one process; also for users' tests.

It is written to be read: where a store's behaviour is in doubt, this is the answer.
"""

from __future__ import annotations

from sitq.backends.memory._backend import MemoryBackend

__all__ = ["MemoryBackend"]
