"""Connections of the store, over asyncpg. No other module imports asyncpg."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from sitq.backends.postgres import _sql
from sitq.backends.postgres._dsn import redacted_dsn, servers_of, split
from sitq.backends.postgres._errors import POOLED, LostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

__all__ = ["ConnectTarget", "PgConnection", "Row", "connect"]

Row = Any

_CONNECT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
# Seconds to wait for the server's answer after a statement's time limit.
_GRACE: Final = 1.0
# Between two looks whether a process of the server has ended, in seconds.
_END_PAUSE: Final = 0.02
# A peer that has vanished is noticed within about so many seconds.
_VANISHED: Final = 10
_PROBES: Final = 3
# Statements use the functions, operators and types of the server without naming their schema.
# Nothing else must be found by these names: others may create objects in `public`, say.
_SEARCH_PATH: Final = "pg_catalog, pg_temp"
# Every statement of the store goes by an index, and none profits from being planned twice or
# compiled. A plan that was made while the table was empty must not stay a scan of the whole.
_SETTINGS: Final = {
    "search_path": _SEARCH_PATH,
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
# A server that gets no answer from its client releases its locks in as short a time.
_SERVER_SIDE: Final = {
    "tcp_keepalives_idle": str(_VANISHED // 2),
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": str(_PROBES),
    "tcp_user_timeout": str(_VANISHED * 1000),
}
# The arrays that batches travel as: number and name of the array type, number of its elements'.
# They are the same on every server, but the driver would ask about them with each connection.
_ARRAYS: Final = (
    (1001, "bytea", 17),
    (1005, "int2", 21),
    (1007, "int4", 23),
    (1016, "int8", 20),
    (1022, "float8", 701),
    (1185, "timestamptz", 1184),
)
# What a server says of itself.
_READ_ONLY: Final = ("in_hot_standby", "default_transaction_read_only")
_GONE: Final = (
    OSError,
    EOFError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server ended it between two statements
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)


class ConnectTarget(NamedTuple):
    """What to connect to, and how; the DSN may hold a password.

    If not ``prepared``, neither statements nor settings outlive a transaction. ``timeout`` is in
    seconds a statement.
    """

    dsn: str
    prepared: bool
    timeout: float | None

    def __repr__(self) -> str:
        return f"Target({redacted_dsn(self.dsn)})"


class PgConnection:
    """One connection."""

    def __init__(self, connection: asyncpg.Connection, target: ConnectTarget) -> None:
        self._connection = connection
        self._prepared = target.prepared
        self._local = "".join(
            f"SET LOCAL {name} = {value};" for name, value in (_SETTINGS | _limits(target)).items()
        )
        self._reports = connection.get_settings()
        self._began_read_only = self._is_read_only
        self.process: tuple[int, datetime] | None = None
        """The server's process and when it began; ``None`` if a pooler may change it."""
        self.outdated = False
        """True if it must not be used again."""
        self.lost: Final = asyncio.Event()
        connection.add_termination_listener(lambda _: self.lost.set())

    @property
    def is_lost(self) -> bool:
        """Return whether it has ended."""
        return self._connection.is_closed()

    @property
    def is_reusable(self) -> bool:
        """Return whether it can be used, with no transaction open nor one that has failed."""
        return not (self.outdated or self.is_lost or self._connection.is_in_transaction())

    @property
    def has_turned_read_only(self) -> bool:
        """Return whether its server took writes at first, and takes none any more."""
        return not self._began_read_only and self._is_read_only

    @property
    def _is_read_only(self) -> bool:
        # A server reports these by itself, with its next answer (from PostgreSQL 14 on).
        return "on" in {getattr(self._reports, name, "off") for name in _READ_ONLY}

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement, in a transaction of its own unless one is open; return its rows.

        Raises:
            LostError: the connection has ended; the statement may have been carried out.
        """
        try:
            if self._prepared or self._connection.is_in_transaction():
                return await self._connection.fetch(sql, *parameters)
            return await self._fetch_in_transaction(sql, parameters)
        except _GONE as error:
            self.terminate()
            raise LostError(_first_line(error)) from error
        except asyncpg.PostgresError as error:
            if self._connection.is_closed():
                raise LostError(_first_line(error)) from error
            raise
        except (ValueError, ArithmeticError, TypeError):
            raise  # a row that cannot be read; the driver has taken in the whole answer
        except BaseException as error:
            # The state of the protocol is unknown.
            self.terminate()
            if isinstance(error, Exception):
                raise LostError(type(error).__name__) from error
            raise

    async def _fetch_in_transaction(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        # A pooler may change the server's process between two transactions.
        await self._connection.execute(f"BEGIN;{self._local}")
        try:
            rows = await self._connection.fetch(sql, *parameters)
        except BaseException:
            if not self._connection.is_closed():
                await self._connection.execute("ROLLBACK")
            raise
        await self._connection.execute("COMMIT")
        return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Begin a transaction, and end it; each statement sees what others have committed."""
        try:
            async with self._connection.transaction(isolation="read_committed"):
                if not self._prepared:
                    await self._connection.execute(self._local)
                yield
        except _GONE as error:
            self.terminate()
            raise LostError(_first_line(error)) from error

    async def run_script(self, script: str) -> None:
        """Run any number of statements in the open transaction."""
        await self._connection.execute(script)

    async def listen(self, channels: Sequence[str], heard: Callable[[str, str], None]) -> None:
        """Call ``heard`` with channel and text of each notification from now on."""
        try:
            for channel in channels:
                await self._connection.add_listener(
                    channel, lambda _connection, _pid, name, text: heard(name, text)
                )
        except _GONE as error:
            raise LostError(_first_line(error)) from error

    async def identify(self) -> None:
        """Ask the server which process of its own serves this connection.

        Raises:
            LostError: it is not the process that accepted the connection, or it has another
                search path: there is a pooler.
        """
        if self._prepared:
            rows = await self.fetch(_sql.WHOAMI)
            if any(
                process != self._connection.get_server_pid() or path != _SEARCH_PATH
                for process, _, path in rows
            ):
                raise LostError(POOLED)
            self.process = rows[0][:2] if rows else None

    async def end_process_of(self, lost: PgConnection) -> None:
        """Make sure that the server's process of a lost connection has ended.

        Raises:
            LostError: it still runs, and may carry out the statement.
        """
        if lost.process is None or self is lost:
            return
        for _ in range(50):
            if not await self.fetch(_sql.END_PROCESS, lost.process):
                return
            await asyncio.sleep(_END_PAUSE)
        raise LostError("the server has not let go of a lost connection yet")

    async def close(self) -> None:
        """Close the connection, in order if the server answers."""
        try:
            await self._connection.close(timeout=_CLOSE_SECONDS)
        except Exception:  # noqa: BLE001 - it is closed in any case
            self.terminate()

    def terminate(self) -> None:
        """Close the connection without a message to the server."""
        with suppress(Exception):
            self._connection.terminate()


async def connect(target: ConnectTarget) -> PgConnection:
    """Connect.

    Raises:
        LostError: the server cannot be reached.
    """
    settings = {"application_name": "sitq"}
    if "application_name" in split(target.dsn)[1]:
        settings = {}
    if target.prepared:
        settings |= _SETTINGS | _SERVER_SIDE | _limits(target)
    connection = await _connect_to_one(target, settings)
    own = PgConnection(connection, target)
    try:
        _watch(connection)
        _teach_arrays(connection)
        await own.identify()
    except BaseException:
        own.terminate()
        raise
    return own


async def _connect_to_one(target: ConnectTarget, settings: dict[str, str]) -> asyncpg.Connection:
    """Connect to the first server of the URL that can be had and is of the kind that is wanted."""
    servers = servers_of(target.dsn)
    failure: Exception | None = None
    for server in list(servers):
        try:
            connection = await asyncpg.connect(
                target.dsn,
                # One that has vanished must leave time for the others.
                timeout=_CONNECT_SECONDS / len(servers),
                statement_cache_size=100 if target.prepared else 0,
                command_timeout=target.timeout and target.timeout + _GRACE,
                server_settings=settings,
                **server,
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError):
            raise
        except (asyncpg.PostgresError, *_GONE, ValueError) as error:
            # Of a server that takes no writes nothing more can be said: another one's error can.
            if failure is None or not isinstance(error, asyncpg.TargetServerAttributeNotMatched):
                failure = error
        else:
            # From now on, it is the first to be tried.
            servers[:] = sorted(servers, key=lambda each: each is not server)
            return connection
    raise _unreachable(failure)


def _unreachable(error: Exception | None) -> Exception:
    """Return what is raised where no server of a URL can be had."""
    if error is None or not isinstance(error, (*_GONE, ValueError)):
        return error or LostError("there is no server")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        text = "none of the servers is one that takes writes"
    elif isinstance(error, asyncpg.InterfaceError | ValueError):
        # What the driver says of a URL may quote it.
        text, error = "the driver cannot use this URL", error.with_traceback(None)
    else:
        text = _first_line(error)
        if "startup parameter" in text:  # PgBouncer takes few of them
            text += f": {POOLED}"
    lost = LostError(text)
    lost.__cause__ = error
    return lost


def _limits(target: ConnectTarget) -> dict[str, str]:
    """Return the server's setting for a statement's time limit."""
    return {"statement_timeout": f"{target.timeout * 1000:.0f}"} if target.timeout else {}


def _watch(connection: asyncpg.Connection) -> None:
    """Make the system notice a server that has vanished."""
    transport = getattr(connection, "_transport", None)
    plug: socket.socket | None = transport and transport.get_extra_info("socket")
    if plug is None or plug.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    options = {
        "TCP_KEEPIDLE": _VANISHED // 2,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": _VANISHED * 1000,
    }
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # not all systems have all of them
            plug.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _teach_arrays(connection: asyncpg.Connection) -> None:
    """Register array types with the driver, which otherwise queries the server for them."""
    records = [
        {
            "oid": number,
            "name": f"_{name}",
            "ns": "pg_catalog",
            "kind": b"b",
            "basetype": None,
            "elemtype": element,
            "elemtype_name": name,
            "elemdelim": ",",
            "range_subtype": None,
            "attrtypoids": None,
            "attrnames": None,
        }
        for number, name, element in _ARRAYS
    ]
    with suppress(AttributeError, KeyError, TypeError):
        connection._protocol.get_settings().register_data_types(records)  # noqa: SLF001


def _first_line(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, asyncpg.InternalClientError | asyncpg.InterfaceError):
        return "the connection was lost"  # its text is about states within the driver
    if isinstance(error, OSError):
        text = error.strerror or str(error)
    return text.partition("\n")[0] or type(error).__name__
