"""Reads and replaces the file under a lock, so that every operation is one step."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from sitq import BackendConnectionError, BackendFormatError
from sitq_jsonfile.rows import Row

__all__ = ["JsonFile"]

FORMAT = "sitq-jsonfile 1"


class JsonFile:
    """Rows by task id, a line of JSON each, below a line with the format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")
        self._next = path.with_name(f"{path.name}.next")

    @contextmanager
    def locked(self) -> Generator[dict[str, Row], None, None]:
        """Give the rows, and store them if they were changed and no exception was raised."""
        try:
            with self._lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # across threads and processes; ends with them
                rows = self._read()
                before = dict(rows)
                yield rows
                if rows != before:
                    self._write(rows)
        except OSError as error:
            raise BackendConnectionError(f"{self.path}: {error.strerror}") from error

    def version(self) -> object:
        """Return a value that differs after the file was written."""
        with suppress(OSError):
            status = self.path.stat()
            return (status.st_ino, status.st_mtime_ns)
        return None

    def _read(self) -> dict[str, Row]:
        if not self.path.exists():
            return {}
        first, *lines = self.path.read_text().splitlines() or [""]
        if first != json.dumps(FORMAT):
            raise BackendFormatError(f"{self.path} is no file of sitq-jsonfile's")
        rows = [Row.model_validate_json(line) for line in lines]
        return {row.task.id: row for row in rows}

    def _write(self, rows: dict[str, Row]) -> None:
        """Replace the file with a new one, flushed to the disk."""
        with self._next.open("w") as file:
            lines = [json.dumps(FORMAT), *(row.model_dump_json() for row in rows.values())]
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._next.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
