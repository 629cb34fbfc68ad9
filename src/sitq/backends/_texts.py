"""How the stores write down policies, headers, and the errors that they make up themselves."""

from __future__ import annotations

import json
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pydantic_core import from_json

from sitq._fields import has_module
from sitq.models import Progress, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LOST_ERROR",
    "UNREADABLE",
    "clip",
    "dump_headers",
    "dump_policy",
    "load_headers",
    "load_policy",
    "load_progress",
]

LOST_ERROR: Final = (
    "LeaseLostError: %d workers that ran this task died or hung before they reported"
)
UNREADABLE: Final = "BackendFormatError: the stored options of this task cannot be read"

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


# Nothing that `dump_policy`, `dump_headers` and progress write is longer.
_MAX_TEXT: Final = 131_072


def _bounded(text: str) -> str:
    """Refuse a text that no queue has written, before any of it is read.

    Raises:
        ValueError: it is too long.
    """
    if len(text) > _MAX_TEXT:
        raise ValueError("a stored text is too long")
    return text


@lru_cache(maxsize=256)
def load_policy(text: str) -> RetryPolicy:
    """Return a retry policy as it was stored.

    Names of exceptions without a module, which match none, were stored by earlier versions: they
    are left out.

    Raises:
        ValueError: the text holds something else.
    """
    fields = from_json(_bounded(text))
    for key in ("retry_on", "no_retry_on") if type(fields) is dict else ():
        names = fields.get(key)
        if type(names) is list:
            fields[key] = [each for each in names if type(each) is not str or has_module(each)]
    return RetryPolicy.model_validate(fields)


@lru_cache(maxsize=256)
def dump_policy(policy: RetryPolicy) -> str:
    """A retry policy as it is stored."""
    # A version of sitq that does not know the field reads what does not need it.
    return policy.model_dump_json(exclude=None if policy.no_retry_on else {"no_retry_on"})


def load_headers(text: str | None) -> Mapping[str, str]:
    """Read headers as they were stored.

    Raises:
        ValueError: the text holds something else.
    """
    if text is None:
        return _NO_HEADERS
    try:
        headers = json.loads(_bounded(text))
    except RecursionError:
        raise ValueError("stored headers are nested too deeply") from None
    if type(headers) is not dict or not {str}.issuperset(map(type, headers.values())):
        raise ValueError("stored headers are no texts")
    return headers


def load_progress(text: str | None) -> Progress | None:
    """Read a task's progress as it was stored.

    Raises:
        ValueError: the text holds something else.
    """
    return None if text is None else Progress.model_validate_json(_bounded(text))


def clip(text: str | None, limit: int) -> str | None:
    """Return what of a stored text is shown; a worker writes none that is longer."""
    if text is None or len(text) <= limit:
        return text
    return f"{text[:limit]}\n[... {len(text) - limit} characters left out ...]"


def dump_headers(headers: Mapping[str, str]) -> str | None:
    """Headers as they are stored; nothing for none."""
    return json.dumps(dict(headers)) if headers else None
