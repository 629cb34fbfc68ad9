"""PgBouncer between sitq and the server, in its transaction mode: from Debian's package, say."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

from tests.postgres.servers import Server

__all__ = ["Pooler"]

PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
CONFIG = """
[databases]
* = host={socket} port=5432 user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
server_login_retry = 0.1
logfile = {folder}/log
pidfile = {folder}/pid
"""


@cache
def _program() -> str:
    program = shutil.which("pgbouncer", path=PLACES)
    if program is None:
        pytest.skip("there is no PgBouncer here (Debian's package pgbouncer)")
    return program


class Pooler:
    """A pooler with few connections, in front of a server of the tests' own.

    Skips the test where there is none. It runs as the server's user, since it refuses to be root.

    Args:
        server: the server.
        size: how many connections to the server its clients share.
        ignored: parameters of a connection that it passes over.
    """

    def __init__(self, server: Server, size: int = 3, ignored: str = "") -> None:
        self._program = _program()
        self._folder = Path(tempfile.mkdtemp(prefix="sitq-pgbouncer-", dir="/tmp"))
        self.port = _free_port()
        self._user = server.user
        data = server.folder / "data"
        text = CONFIG.format(socket=data, port=self.port, size=size, folder=self._folder)
        if ignored:
            text += f"ignore_startup_parameters = {ignored}\n"
        config = self._folder / "pgbouncer.ini"
        config.write_text(text)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self.start()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [self._program, "-q", str(self._folder / "pgbouncer.ini")],
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert time.monotonic() < give_up, (self._folder / "log").read_text()
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill it with all connections through it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        (self._folder / "pid").unlink(missing_ok=True)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
