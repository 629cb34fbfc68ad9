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

__all__ = ["redacted_dsn", "servers_of", "split"]

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
    """Return a DSN as it may be shown: without password and options.

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


@lru_cache(maxsize=64)
def servers_of(dsn: str) -> list[dict[str, object]]:
    """Return the driver's arguments for each server of a DSN; the list is shared.

    They are empty for a single server, which the driver finds itself.
    """
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
        return [{}]
    default = os.environ.get("PGPORT") or "5432"
    try:
        numbers = [int(port or default) for port in ports]
    except ValueError:  # the driver says what is wrong
        return [{}]
    return [
        {"host": name, "port": number, "target_session_attrs": wanted}
        for name, number in zip(names, numbers, strict=True)
    ]
