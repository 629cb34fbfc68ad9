"""What a store declares of itself for the worker."""

from __future__ import annotations

__all__ = ["UsesDatabaseThread"]


class UsesDatabaseThread:
    """A base of stores whose statements run in a thread of this process.

    That thread and the worker's event loop share the interpreter.
    """

    __slots__ = ()
