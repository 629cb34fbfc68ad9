"""The store for many machines: a schema of a PostgreSQL database; needs the extra ``postgres``."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("asyncpg") is None:
    message = (
        "sitq.backends.postgres needs asyncpg: install sitq with its extra 'postgres' "
        "(pip install '.[postgres]' in a checkout of sitq)"
    )
    raise ImportError(message, name="asyncpg")

from sitq.backends.postgres._backend import PostgresBackend

__all__ = ["PostgresBackend"]
