"""The default store: one SQLite file."""

from __future__ import annotations

from sitq.backends.sqlite._backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
