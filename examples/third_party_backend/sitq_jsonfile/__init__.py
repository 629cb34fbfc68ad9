"""A store for sitq in one JSON file: small, real, and only for small queues.

Each operation reads the whole file and writes it anew, so a thousand tasks are many.
"""

from __future__ import annotations

from sitq_jsonfile.backend import JsonFileBackend, from_url

__all__ = ["JsonFileBackend", "from_url"]
