"""How the stores write down policies, headers, and the errors that they make up themselves."""

from __future__ import annotations

import json
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sitq.models import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LOST_ERROR",
    "UNREADABLE",
    "dump_headers",
    "dump_policy",
    "load_headers",
    "load_policy",
]

LOST_ERROR: Final = (
    "LeaseLostError: %d workers that ran this task died or hung before they reported"
)
UNREADABLE: Final = "BackendFormatError: the stored options of this task cannot be read"

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@lru_cache(maxsize=256)
def load_policy(text: str) -> RetryPolicy:
    """A retry policy as it was stored."""
    return RetryPolicy.model_validate_json(text)


@lru_cache(maxsize=256)
def dump_policy(policy: RetryPolicy) -> str:
    """A retry policy as it is stored."""
    # A version of sitq that does not know the field reads what does not need it.
    return policy.model_dump_json(exclude=None if policy.no_retry_on else {"no_retry_on"})


def load_headers(text: str | None) -> Mapping[str, str]:
    """Headers as they were stored."""
    return _NO_HEADERS if text is None else json.loads(text)


def dump_headers(headers: Mapping[str, str]) -> str | None:
    """Headers as they are stored; nothing for none."""
    return json.dumps(dict(headers)) if headers else None
