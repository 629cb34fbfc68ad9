"""The options of an enqueue, and the checks of what callers give."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from sitq._builtin_types import plain
from sitq._validation import (
    check_key,
    check_moment,
    check_positive_seconds,
    check_priority,
    check_queue,
    check_seconds,
)
from sitq.errors import ValidationError
from sitq.payload._function_signatures import spelled_out
from sitq.payload.functions import check_retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from sitq.models import RetryPolicy

__all__ = [
    "NO_OPTIONS",
    "OPTION_NAMES",
    "Options",
    "check_headers",
    "make_options",
    "take_eta",
]

_MAX_HEADERS: Final = 64
_MAX_HEADER_BYTES: Final = 8192


@dataclass(frozen=True, slots=True, repr=False)
class Options:
    """Checked options; ``None`` is "not given"."""

    eta: datetime | None = None
    delay: timedelta | None = None
    queue: str | None = None
    priority: int | None = None
    timeout: float | None = None
    retry: RetryPolicy | None = None
    unique_key: str | None = None
    unique_until: Literal["start"] | None = None
    expires_at: datetime | None = None
    result_ttl: float | None = None
    headers: Mapping[str, str] | None = None

    def eta_after(self, delay: timedelta, now: datetime) -> datetime:
        """Return the eta of a task that is enqueued ``now``.

        Raises:
            ValidationError: the delay ends after ``expires_at``, or after the year 9999.
        """
        try:
            eta = now + delay
        except OverflowError:
            message = "delay: leads to a moment after the year 9999; give a shorter one"
            raise ValidationError(message) from None
        _check_order(eta, self.expires_at)
        return eta

    def __repr__(self) -> str:
        """Show the options that are set; keys and headers, which are private, as ``...``."""
        shown = []
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                shown.append(f"{name}={'...' if name in {'unique_key', 'headers'} else value!r}")
        return f"Options({', '.join(shown)})"


NO_OPTIONS: Final = Options()


def make_options(**given: object) -> Options:
    """Check options as the caller gave them; ``None`` leaves an option unset.

    Raises:
        ValidationError: an option is out of its range or of the wrong type, or two exclude
            each other.
    """
    values: dict[str, Any] = {
        name: _CHECKS[name](name, plain(value))
        for name, value in given.items()
        if value is not None
    }
    options = Options(**values)
    if options.eta is not None and options.delay is not None:
        raise ValidationError("eta, delay: give one of them, not both")
    _check_order(options.eta, options.expires_at)
    if options.unique_until is not None and options.unique_key is None:
        raise ValidationError("unique_until: give a unique_key too; it says how long that is held")
    return options


def take_eta(func: Callable[..., Any], kwargs: dict[str, Any]) -> Options:
    """Take the option ``eta=`` out of the keyword arguments of a call.

    Raises:
        ValidationError: the function has such a parameter itself, or the value is not a datetime.
    """
    try:
        parameter = spelled_out(func).parameters.get("eta")
    except (TypeError, ValueError):  # it is not a function, which another check refuses
        parameter = None
    if parameter is not None and parameter.kind in {
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    }:
        name = getattr(func, "__qualname__", type(func).__name__)
        message = (
            f"eta: {name} has a parameter of that name too; use "
            "queue.options(eta=...).enqueue(...), where every keyword goes to the function"
        )
        raise ValidationError(message)
    return make_options(eta=kwargs.pop("eta"))


def _refuse(name: str, value: object, hint: str) -> NoReturn:
    message = f"{name}: {hint} (got {type(value).__name__})"
    raise ValidationError(message)


def _check_order(eta: datetime | None, expires_at: datetime | None) -> None:
    if eta is not None and expires_at is not None and expires_at <= eta:
        message = "expires_at: must be later than the eta, or the task can never start"
        raise ValidationError(message)


def _delay(name: str, value: object) -> timedelta:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        return timedelta(seconds=check_seconds(name, seconds))
    except ValidationError as error:
        raise ValidationError(f"{error}; a timedelta is accepted too") from None


def _until(name: str, value: object) -> str | None:
    if not isinstance(value, str) or value not in {"end", "start"}:
        _refuse(name, value, 'give "end" or "start"')
    return "start" if value == "start" else None  # "end" is the default, stored as not given


def check_headers(name: str, value: object) -> Mapping[str, str]:
    """Return headers; the parameters are those of the other checks.

    Raises:
        ValidationError: they are not texts by texts, or too many or too long.
    """
    hint = (
        f"give a dict of str to str, at most {_MAX_HEADERS} entries "
        f"and {_MAX_HEADER_BYTES:,} bytes of UTF-8"
    )
    if not isinstance(value, dict | MappingProxyType):
        _refuse(name, value, hint)
    # A proxy may wrap any mapping; for a dict, a subclass's own method is not called.
    items = dict.items(value) if isinstance(value, dict) else value.items()
    headers = {plain(key): plain(text) for key, text in items}
    size = 0
    for text in (*headers.keys(), *headers.values()):
        try:
            size += len(str.encode(text))
        except (TypeError, UnicodeEncodeError):
            _refuse(name, text, f"{hint}; one key or value is no such text")
    if len(headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
        _refuse(name, value, f"{hint}; these are {len(headers):,} entries and {size:,} bytes")
    return headers


_CHECKS: Final[Mapping[str, Callable[[str, object], object]]] = MappingProxyType(
    {
        "eta": check_moment,
        "delay": _delay,
        "queue": check_queue,
        "priority": check_priority,
        "timeout": check_positive_seconds,
        "retry": check_retry,
        "unique_key": check_key,
        "unique_until": _until,
        "expires_at": check_moment,
        "result_ttl": check_seconds,
        "headers": check_headers,
    }
)
OPTION_NAMES: Final = frozenset(_CHECKS)
