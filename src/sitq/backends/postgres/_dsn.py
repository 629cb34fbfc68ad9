"""What a DSN says: its parts, how it is shown, and the servers that it names."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

from sitq.errors import ValidationError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

__all__ = ["Servers", "redacted_dsn", "servers_of", "split"]

# Options of libpq's that asyncpg does not know: it would send them to the server.
_FOREIGN: Final = {
    "channel_binding", "client_encoding", "connect_timeout", "fallback_application_name",
    "gssdelegation", "gssencmode", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle",
    "keepalives_interval", "load_balance_hosts", "replication", "require_auth", "requirepeer",
    "sslcompression", "sslcrldir", "sslsni", "tcp_user_timeout",
}  # fmt: skip
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(:[0-9]{0,5})?")
_UNREADABLE: Final = "dsn: the URL cannot be read; percent-encode its parts"
# Which of several servers is wanted, where sitq can look for it itself.
_WANTED: Final = {"any", "primary", "read-write"}
_DEFAULT: Final = "read-write"


def redacted_dsn(dsn: str) -> str:
    """A DSN as it may be shown: without password and options.

    Raises:
        ValidationError: it is none.
    """
    parts, options = split(dsn)
    user = f"{parts.username}@" if parts.username else ""
    hosts = parts.netloc.rpartition("@")[2]
    folder = "" if hosts else next(iter(options.get("host", ())), "")
    return f"postgresql://{user}{hosts}{parts.path}" + (f" in {folder}" if folder else "")


def split(dsn: str) -> tuple[SplitResult, dict[str, list[str]]]:
    """Return the parts of a DSN, and its options.

    Raises:
        ValidationError: it is none, or has options that the driver does not know.
    """
    try:
        parts = urlsplit(dsn)
        options = parse_qs(parts.query)
    except ValueError:
        raise ValidationError(_UNREADABLE) from None
    if parts.scheme not in {"postgres", "postgresql"} or "://" not in dsn:
        message = "dsn: give a URL like postgresql://user@host:5432/database"
        raise ValidationError(message)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    # A password with a slash or the like in it would be taken for a part that may be shown.
    if "@" in parts.path or parts.fragment or not all(map(_HOST.fullmatch, hosts)):
        raise ValidationError(_UNREADABLE)
    if foreign := _FOREIGN & options.keys():
        raise ValidationError(f"dsn: the driver has no option {min(foreign)!r}; leave it out")
    return parts, options


class Servers:
    """The servers of a DSN, which are passed to the driver one after the other.

    Args:
        addresses: host and port of each; none where the driver finds the one server itself.
        wanted: which kind of server is wanted; ``None``: what the driver does by itself.
    """

    def __init__(self, addresses: list[tuple[str, int]], wanted: str | None) -> None:
        self._addresses: Final = addresses
        self._wanted: Final = wanted
        self._last = 0

    def __len__(self) -> int:
        return max(1, len(self._addresses))

    def attempts(self) -> list[tuple[int, dict[str, object]]]:
        """Return number and arguments of each server, beginning with the last one that was good."""
        if not self._addresses:
            return [(0, {})]
        numbers = sorted(range(len(self)), key=lambda number: number != self._last)
        return [
            (number, {"host": host, "port": port, "target_session_attrs": self._wanted})
            for number in numbers
            for host, port in [self._addresses[number]]
        ]

    def note(self, number: int) -> None:
        """Try this one first from now on."""
        self._last = number


@lru_cache(maxsize=64)
def servers_of(dsn: str) -> Servers:
    """Return the servers of a DSN; what is learnt about them is shared."""
    parts, options = split(dsn)
    texts = parts.netloc.rpartition("@")[2].split(",")
    hosts = [_HOST.fullmatch(text) for text in texts]
    names = [unquote(host[1].strip("[]")) if host else "" for host in hosts]
    ports = [host[2].strip(":") if host and host[2] else "" for host in hosts]
    if not any(names):
        names = next(iter(options.get("host", ())), "").split(",")
        ports = next(iter(options.get("port", ())), "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    given = next(iter(options.get("target_session_attrs", ())), None)
    wanted = given or os.environ.get("PGTARGETSESSIONATTRS") or _DEFAULT
    if len(names) == 1 or not all(names) or len(names) != len(ports) or wanted not in _WANTED:
        return Servers([], None)
    default = os.environ.get("PGPORT") or "5432"
    try:
        numbers = [int(port or default) for port in ports]
    except ValueError:  # the driver says what is wrong
        return Servers([], None)
    return Servers(list(zip(names, numbers, strict=True)), wanted)
