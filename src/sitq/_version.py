"""The version of sitq."""

from __future__ import annotations

from functools import cache

__all__ = ["version"]


@cache
def version() -> str:
    """Return the version of the installed package; a bare source tree has none."""
    from importlib import metadata

    try:
        return metadata.version("sitq")
    except metadata.PackageNotFoundError:
        return "0+unknown"
