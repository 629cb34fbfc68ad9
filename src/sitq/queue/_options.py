"""The options of an enqueue: check them, and merge them with the function's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import pydantic

from sitq._plain import plain
from sitq._task_batch import TaskBatch, copy_with
from sitq._validation import check_key, check_priority, check_queue, check_seconds, describe
from sitq.errors import ValidationError
from sitq.ids import new_task_id, new_task_ids
from sitq.models import RetryPolicy, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from sitq.payload.functions import TaskFunction
    from sitq.protocols import Serializer

__all__ = [
    "NO_OPTIONS",
    "Options",
    "TaskMaker",
    "make_options",
    "make_task",
    "make_tasks",
]

_MAX_HEADERS: Final = 64
_MAX_HEADER_BYTES: Final = 8192
_DEFAULTED: Final = ("queue", "priority", "timeout", "retry", "result_ttl")


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


def make_task(
    function: TaskFunction[Any], payload: bytes, options: Options, now: Callable[[], datetime]
) -> Task:
    """Make the task to store: options override the function's defaults, which override sitq's.

    Args:
        function: the function to run.
        payload: its encoded arguments.
        options: the checked options.
        now: the clock that a delay counts from.

    Raises:
        ValidationError: the delay ends after ``expires_at``, or after the year 9999.
    """
    fields: dict[str, Any] = {}
    if options is not NO_OPTIONS:
        for name in ("eta", "unique_key", "unique_until", "expires_at", "headers"):
            value = getattr(options, name)
            if value is not None:
                fields[name] = value
        if options.delay is not None:
            fields["eta"] = _later(now(), options.delay)
            _check_order(fields["eta"], options.expires_at)
    defaults = function.defaults
    for name in _DEFAULTED:
        value = getattr(options, name)
        if value is None:
            value = getattr(defaults, name)
        if value is not None:
            fields[name] = value
    return _checked(id=new_task_id(), function=function.name, payload=payload, **fields)


def _checked(**fields: Any) -> Task:
    try:
        return Task(**fields)
    except pydantic.ValidationError as error:
        raise ValidationError(f"{fields['function'][:200]}: {describe(error)}") from None


class TaskMaker:
    """Makes tasks of one function under one set of options.

    What they have in common is checked once, here; see `make_task`. Ids are made here too, and
    payloads are bytes or checked.
    """

    __slots__ = ("function", "pattern")

    def __init__(
        self, function: TaskFunction[Any], options: Options, now: Callable[[], datetime]
    ) -> None:
        self.function: Final = function
        self.pattern: Final = make_task(function, b"", options, now)

    def encode(
        self, serializer: Serializer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bytes:
        """Encode the arguments of a call; see `TaskFunction.dump_arguments`."""
        try:
            payload = self.function.dump_arguments(serializer, args, kwargs)
        except ValidationError as error:
            self._refuse_options(kwargs, error)
            raise
        if type(payload) is bytes:
            return payload
        return _checked(**vars(self.pattern) | {"payload": payload}).payload

    def _refuse_options(self, kwargs: Mapping[str, Any], error: ValidationError) -> None:
        """Raise an error that says where options go, if some are among the function's arguments."""
        misplaced = [
            name for name in kwargs if name in _CHECKS and not self.function.takes_keyword(name)
        ]
        if misplaced:
            given = ", ".join(f"{name}={_number(kwargs[name])}" for name in misplaced)
            message = f"{error}; options of the task go into queue.options({given}).enqueue(...)"
            raise ValidationError(message) from None

    def make(self, payload: bytes) -> TaskBatch:
        """Make a task; a batch of one."""
        return TaskBatch(self.pattern, [new_task_id()], [payload])


def _number(value: object) -> str:
    """Show a number, and nothing else: it might be an argument's value."""
    return repr(value) if type(value) in {int, float} else "..."


def make_tasks(encoded: Sequence[tuple[TaskMaker, bytes]]) -> Sequence[Task]:
    """Make a task of each payload, in order."""
    ids = new_task_ids(len(encoded))
    makers = {maker for maker, _ in encoded}
    if len(makers) == 1:
        return TaskBatch(makers.pop().pattern, ids, [payload for _, payload in encoded])
    rows = zip(ids, encoded, strict=True)
    return [copy_with(maker.pattern, task_id, payload) for task_id, (maker, payload) in rows]


def _refuse(name: str, value: object, hint: str) -> NoReturn:
    message = f"{name}: {hint} (got {type(value).__name__})"
    raise ValidationError(message)


def _check_order(eta: datetime | None, expires_at: datetime | None) -> None:
    if eta is not None and expires_at is not None and expires_at <= eta:
        message = "expires_at: must be later than the eta, or the task can never start"
        raise ValidationError(message)


def _later(now: datetime, delay: timedelta) -> datetime:
    try:
        return now + delay
    except OverflowError:
        message = "delay: leads to a moment after the year 9999; give a shorter one"
        raise ValidationError(message) from None


def _moment(name: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        _refuse(name, value, "give an aware datetime, such as datetime.now(UTC)")
    try:
        if value.utcoffset() is not None:
            return value.astimezone(UTC)  # `make_options` has made it a plain datetime
    except OverflowError:
        _refuse(name, value, "in UTC it lies outside the years 1 to 9999; give another moment")
    except Exception as error:
        message = (
            f"{name}: its tzinfo ({type(value.tzinfo).__name__}) raised {type(error).__name__}"
        )
        raise ValidationError(message) from error
    hint = (
        "a naive datetime has no time zone; "
        "use datetime.now(UTC), or .replace(tzinfo=...) with the zone that is meant"
    )
    _refuse(name, value, hint)


def _delay(name: str, value: object) -> timedelta:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        return timedelta(seconds=check_seconds(name, seconds))
    except ValidationError as error:
        raise ValidationError(f"{error}; a timedelta is accepted too") from None


def _timeout(name: str, value: object) -> float:
    return check_seconds(name, value, zero=False)


def _retry(name: str, value: object) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        _refuse(name, value, "give a RetryPolicy, such as RetryPolicy(max_attempts=3)")
    return value.as_plain()


def _until(name: str, value: object) -> str | None:
    if not isinstance(value, str) or value not in {"end", "start"}:
        _refuse(name, value, 'give "end" or "start"')
    return "start" if value == "start" else None  # "end" is the default, stored as not given


def _headers(name: str, value: object) -> Mapping[str, str]:
    hint = (
        f"give a dict of str to str, at most {_MAX_HEADERS} entries "
        f"and {_MAX_HEADER_BYTES:,} bytes of UTF-8"
    )
    if not isinstance(value, dict | MappingProxyType):
        _refuse(name, value, hint)
    headers = {plain(key): plain(text) for key, text in _items(value)}
    size = 0
    for text in (*headers.keys(), *headers.values()):
        length = _bytes_of(text) if isinstance(text, str) else None
        if length is None:
            _refuse(name, text, f"{hint}; one key or value is no such text")
        size += length
    if len(headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
        _refuse(name, value, f"{hint}; these are {len(headers):,} entries and {size:,} bytes")
    return headers


def _items(headers: dict[object, object] | MappingProxyType[object, object]) -> Any:
    # A proxy may wrap any mapping; for a dict, a subclass's own method is not called.
    return dict.items(headers) if isinstance(headers, dict) else headers.items()


def _bytes_of(text: str) -> int | None:
    """Return the text's length in UTF-8; ``None`` if it cannot be encoded."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


_CHECKS: Final[Mapping[str, Callable[[str, object], object]]] = MappingProxyType(
    {
        "eta": _moment,
        "delay": _delay,
        "queue": check_queue,
        "priority": check_priority,
        "timeout": _timeout,
        "retry": _retry,
        "unique_key": check_key,
        "unique_until": _until,
        "expires_at": _moment,
        "result_ttl": check_seconds,
        "headers": _headers,
    }
)
