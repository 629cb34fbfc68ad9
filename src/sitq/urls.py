"""`connect`: make a store from a URL.

A URL may hold a password: the errors of this module show nothing of it but its scheme.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from sitq._argument_checks import checked_backend
from sitq.errors import UsageError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from importlib.metadata import EntryPoint
    from urllib.parse import SplitResult

    from sitq.protocols import Backend

__all__ = ["GROUP", "connect"]

GROUP: Final = "sitq.backends"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_SQLITE: Final = "sqlite:///tasks.db, sqlite:////var/lib/tasks.db (an absolute path)"
_POSTGRES: Final = "postgresql://user@host/database"


def connect(url: str) -> Backend:
    """Return the store that a URL names, for a queue or a worker to open.

    - ``sqlite:///tasks.db``: a file, relative to the working directory; with a fourth slash its
      path is absolute. ``?synchronous=NORMAL`` is the option of `SQLiteBackend`.
    - ``postgresql://user@host/database``: a database; needs the extra ``postgres``. ``schema``,
      ``migrate``, ``pool_size`` and ``prepared_statements`` of `PostgresBackend` may follow as
      options, as in ``?schema=jobs&migrate=false``.
    - ``memory:``: a store of its own in this process.
    - any other scheme: what a package has registered in the entry-point group ``sitq.backends``:
      an object that is called with the URL and returns the store.

    Nothing is opened or created yet.

    Args:
        url: the URL.

    Raises:
        ValidationError: the URL names no store; the text says which forms do.
        UsageError: the store needs a package that is not installed.
    """
    given: object = url
    if not isinstance(given, str):
        raise ValidationError(f"url: give a text, {_SQLITE} say (got {type(given).__name__})")
    match = _SCHEME.match(url)
    if match is None:
        raise ValidationError(f"url: it has no scheme: give {_SQLITE}, {_known()}")
    scheme = match[1].lower()
    if scheme in _OURS:
        return _OURS[scheme](url)
    for entry in _registered():
        if entry.name == scheme:
            return _third_party(entry, url)
    # Without the slashes it may be anything, such as a user's name and password.
    which = f"the scheme {scheme!r}" if match[2] else "its scheme"
    raise ValidationError(f"url: {which} is unknown: give {_SQLITE}, {_known()}")


def _registered() -> Iterable[EntryPoint]:
    """Return the entry points of other packages."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def _known() -> str:
    """Return the other schemes, for errors."""
    theirs = sorted({f"{entry.name}:..." for entry in _registered()})
    return ", ".join(["memory:", _POSTGRES, *theirs])


def _third_party(entry: EntryPoint, url: str) -> Backend:
    try:
        factory = cast("Callable[[str], Backend]", entry.load())
    except (ImportError, AttributeError) as error:
        package = "its package" if entry.dist is None else f"the package {entry.dist.name}"
        message = f"url: {package} cannot be loaded for {entry.name!r}: {error}"
        raise UsageError(message) from error
    return checked_backend(factory(url))


def _sqlite(url: str) -> Backend:
    parts = _split(url, _SQLITE)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path == "/" or parts.fragment:
        raise ValidationError(f"url: this is not a SQLite file: give {_SQLITE}")
    options = _options(parts.query, {"synchronous": ("FULL", "NORMAL")})
    from sitq.backends.sqlite import SQLiteBackend

    return SQLiteBackend(path[1:], **options)  # type: ignore[arg-type]


def _memory(url: str) -> Backend:
    if url.lower() not in {"memory:", "memory://"}:
        raise ValidationError("url: a store in memory has no name: give memory:")
    from sitq.backends.memory import MemoryBackend

    return MemoryBackend()


def _postgres(url: str) -> Backend:
    _split(url, _POSTGRES)
    if not url.partition(":")[2].startswith("//"):
        raise ValidationError(f"url: this is not a PostgreSQL database: give {_POSTGRES}")
    try:
        module = import_module("sitq.backends.postgres")
    except ImportError as error:
        message = (
            f"url: PostgreSQL needs the package {error.name}: install sitq with its extra "
            "'postgres', by pip install \".[postgres]\" in its checkout"
        )
        raise UsageError(message) from None
    dsn, options = _own_options(url)
    return cast("Backend", module.PostgresBackend(dsn, **options))


def _own_options(url: str) -> tuple[str, dict[str, object]]:
    """Split a URL of PostgreSQL into the driver's URL and the options of the backend."""
    address, _, query = url.partition("?")
    parts = query.split("&")
    ours = [part for part in parts if part.partition("=")[0] in _POSTGRES_OPTIONS]
    options: dict[str, object] = {}
    for name, value in parse_qsl("&".join(ours), keep_blank_values=True):
        hint, read = _POSTGRES_OPTIONS[name]
        try:
            options[name] = read(value)
        except (KeyError, ValueError):
            raise ValidationError(f"url: {name}: give {hint}") from None
    others = "&".join(part for part in parts if part not in ours)
    return f"{address}?{others}" if others else address, options


def _split(url: str, instead: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its text would show the part with the password
        raise ValidationError(f"url: it is malformed: give {instead}") from None


def _options(query: str, known: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the options of a URL.

    Raises:
        ValidationError: one is unknown, is given twice, or has a value that it cannot have.
    """
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in options:
            raise ValidationError(f"url: the options are {', '.join(known)}, each once")
        if value not in known[name]:
            raise ValidationError(f"url: {name}: give {' or '.join(known[name])}")
        options[name] = value
    return options


_YES_OR_NO: Final = {"true": True, "false": False}
_POSTGRES_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "schema": ("a name", str),
    "migrate": ("true or false", _YES_OR_NO.__getitem__),
    "pool_size": ("a whole number", int),
    "prepared_statements": ("true or false", _YES_OR_NO.__getitem__),
}


_OURS: Final[Mapping[str, Callable[[str], Backend]]] = {
    "memory": _memory,
    "postgres": _postgres,
    "postgresql": _postgres,
    "sqlite": _sqlite,
}
