"""Limits on the cost of rebuilding values from their annotations.

A serializer limits how many values a payload holds. What pydantic makes of them depends on the
annotation: reading a text as an address, a time zone or a regular expression takes a thousand times
as long as reading it as a text, and numbers read from texts may share their hashes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sitq.errors import SerializationError
from sitq.payload._collision_limits import KeyBudget
from sitq.payload._msgpack import CONTAINERS, LEAVES, items_of
from sitq.payload._stored_form import field_names, is_tagged, nodes, without_names

__all__ = ["RebuildLimits"]

# The limits: texts that take microseconds each to read, texts that need a file each, and characters
# of regular expressions.
_MAX_SLOW_TEXTS: Final = 5_000
_MAX_ZONES: Final = 300
_MAX_PATTERN_CHARACTERS: Final = 1_000
# A set of characters beyond ASCII takes milliseconds to compile.
_MAX_WIDE_SETS: Final = 4
_MAX_JSON_CHARACTERS: Final = 100_000
# This limit is divided by the number of types to try for each value.
_MAX_MODEL_VALUES: Final = 25_000
_MAX_NUMBER: Final = 1_100
_LARGE_EXPONENT: Final = re.compile(r"\s*[+-]?[\d_.]+[eE][+-]?\d{4,}\s*")
_NUMERIC: Final = re.compile(r"[\d_.+\-eE/\s]*")
_INT: Final = re.compile(r"\s*[+-]?[\d_]{1,4300}\s*")
_UUID: Final = re.compile(r"\s*(?:urn:uuid:)?\{?[0-9a-fA-F-]{32,36}\}?\s*")
_SLOW_KINDS: Final = frozenset({"url", "multi-host-url"})
_SLOW_MODULES: Final = ("pydantic.", "pydantic", "ipaddress", "pathlib", "fractions", "zoneinfo")
# Keys of these types have hashes that cannot be predicted, or are too few to collide.
_SAFE_KEYS: Final = frozenset(
    {"str", "bytes", "bool", "none", "enum", "literal", "date", "time", "datetime", "timedelta"}
)
_RECORDS: Final = frozenset({"model", "dataclass", "typed-dict", "named-tuple"})
_COLLECTIONS: Final = {each.__name__: each for each in (dict, list, tuple, set, frozenset)}
# The keys of core schemas that hold another schema for the same value.
_INNER: Final = frozenset(
    {"schema", "lax_schema", "strict_schema", "json_schema", "python_schema", "steps"}
)
_AMBIGUOUS: Final = (
    ", each counted as often as its unions have types to try (a discriminator helps)"
)

# A step into a container: a field's name, or the container's type.
_Step = str | type


class RebuildLimits:
    """Limits on the plain values of one annotation."""

    __slots__ = ("_builds_keys", "_has", "_max_values", "_tries")

    def __init__(self, parts: Iterable[Mapping[str, Any]]) -> None:
        found = [node for node in parts if isinstance(node.get("type"), str)]
        self._has: Final = frozenset(filter(None, map(_cost_class, found)))
        kinds = {node.get("type") for node in found}
        choices = sum(len(node["choices"]) for node in found if node["type"] == "union")
        is_bounded = bool(choices) or not _RECORDS.isdisjoint(kinds)
        self._max_values: Final = _MAX_MODEL_VALUES // max(choices, 1) if is_bounded else None
        self._builds_keys: Final = any(map(_builds_keys, found))
        self._tries: Final = _tries(found)

    def check(self, plain: object) -> float:
        """Check a plain value before it is rebuilt; return which share of the limits it uses."""
        if not self._has and self._max_values is None and not self._builds_keys:
            return 0.0
        values = 0
        key_budget = KeyBudget()
        texts: list[str] = [plain] if type(plain) is str else []
        for container, times in _containers(plain, self._tries):
            values += times * len(container)
            texts += [item for item in items_of(container) if type(item) is str]
            if self._builds_keys and len(container) > 1:
                kind = dict if type(container) is dict else set
                key_budget.take(container, kind, convert=_as_key)
        what = f"values{_AMBIGUOUS if self._tries else ''}"
        used = [] if self._max_values is None else [(values, self._max_values, what)]
        if self._has:
            used += self._use_of_texts(texts)
        for count, limit, what in used:
            if count > limit:
                _refuse(f"more than {limit:,} {what}")
        return max((count / limit for count, limit, _ in used), default=0.0)

    def _use_of_texts(self, texts: list[str]) -> Iterator[tuple[int, int, str]]:
        """Yield for each kind of text the size, the limit and the kind's name."""
        if "slow" in self._has:
            yield len(texts), _MAX_SLOW_TEXTS, "texts"
        if "zone" in self._has:
            yield len(set(texts)), _MAX_ZONES, "texts"
        if "pattern" in self._has:
            wide = sum(text.count("[") for text in texts if _is_wide(text))
            yield wide, _MAX_WIDE_SETS, "sets of characters beyond ASCII"
            length = sum(map(len, texts))
            yield length, _MAX_PATTERN_CHARACTERS, "characters of regular expressions"
        if "json" in self._has:
            yield sum(map(len, texts)), _MAX_JSON_CHARACTERS, "characters of JSON"
        if "fraction" in self._has and any(map(_is_large_number, texts)):
            _refuse("a number of too many digits, or of too large an exponent")


def _tries(found: list[Mapping[str, Any]]) -> dict[_Step, int]:
    """Return, by field or container, how many branches of one union read its value, if several do.

    Each branch reads it separately. In a recursive type these numbers multiply at each level.
    """
    definitions = {node["ref"]: node for node in found if isinstance(node.get("ref"), str)}
    tries: dict[_Step, int] = {}
    for union in found:
        if union["type"] != "union":
            continue
        steps = Counter(_steps(union["choices"], definitions, frozenset()))
        for step, count in steps.items():
            is_name = isinstance(step, str)
            times = count + steps[dict] if is_name else count
            tries[step] = max(times, tries.get(step, 1))
    return {step: times for step, times in tries.items() if times > 1}


def _steps(
    schema: Any, definitions: Mapping[str, Mapping[str, Any]], seen: frozenset[str]
) -> Iterator[_Step]:
    """Yield the steps into the containers that a part of a core schema takes."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from _steps(each, definitions, seen)
    if not isinstance(schema, Mapping):
        return
    kind = schema.get("type")
    if kind == "definition-ref":
        ref = schema["schema_ref"]
        if ref not in seen:
            yield from _steps(definitions.get(ref), definitions, seen | {ref})
    elif names := field_names(schema):
        yield from names
    elif kind in _COLLECTIONS:
        yield _COLLECTIONS[kind]
    else:
        inner = [schema[key] for key in schema.keys() & _INNER]
        choices = schema.get("choices", ())
        inner.append([*choices.values()] if isinstance(choices, Mapping) else choices)
        yield from _steps(inner, definitions, seen)


def _refuse(what: str) -> None:
    raise SerializationError(
        f"for its annotation it holds {what}, which would take too long to read; "
        "store the data elsewhere and pass where it is"
    )


def _cost_class(node: Mapping[str, Any]) -> str | None:
    """Return how long a node takes for a text; ``None``: not long."""
    kind = node["type"]
    if kind in {"json", "fraction"}:
        return str(kind)
    if kind in _SLOW_KINDS:
        return "slow"
    if not kind.startswith("function-"):
        return None
    function = node.get("function")
    called = function.get("function") if isinstance(function, Mapping) else None
    module = getattr(called, "__module__", None)
    if not isinstance(module, str) or not module.startswith(_SLOW_MODULES):
        return None  # a class of the user's own
    name = str(getattr(called, "__name__", ""))
    for part, found in (("pattern", "pattern"), ("iana_tz", "zone"), ("fraction", "fraction")):
        if part in name:
            return found
    return "slow"


def _builds_keys(node: Mapping[str, Any]) -> bool:
    """Return whether a node puts values into a set or dict whose hashes can be predicted."""
    kind = node["type"]
    if kind in {"set", "frozenset"}:
        keys = node.get("items_schema")
    elif kind == "dict":
        keys = node.get("keys_schema")
    else:
        return False
    return keys is not None and any(
        each.get("type", "str") not in _SAFE_KEYS for each in nodes(keys)
    )


def _containers(plain: object, tries: Mapping[_Step, int]) -> Iterator[tuple[Any, int]]:
    """Yield the containers in a value, and how often each is read."""
    waiting = [(plain, 1)]
    while waiting:
        each, times = waiting.pop()
        if type(each) not in CONTAINERS:
            continue
        yield each, times
        items = items_of(each)
        if LEAVES.issuperset(map(type, items)):
            continue
        if tries and type(each) is dict:
            other = tries.get(dict, 1)
            waiting += [(key, times * other) for key in each]
            waiting += [
                (item, times * (tries.get(key, other) if type(key) is str else other))
                for key, item in each.items()
            ]
        else:
            more = times * tries.get(type(each), 1)
            waiting += [(item, more) for item in items if type(item) not in LEAVES]


def _as_key(item: Any) -> Any:
    """Return the key that pydantic may make of an item; ``None``: its hash cannot be predicted."""
    kind = type(item)
    if kind is str:
        if _INT.fullmatch(item):
            return int(item)
        if _UUID.fullmatch(item):
            return int(re.sub(r"[^0-9a-fA-F]", "", item.replace("urn:uuid:", "")) or "0", 16)
        return None
    if kind is tuple and is_tagged(item):
        return _as_key(without_names(item))
    if kind is list or kind is tuple:
        return tuple(map(_as_key, item))
    if kind is dict:
        return tuple(map(_as_key, item.values()))
    return None if kind in {set, frozenset, bytes} else item


def _is_wide(text: str) -> bool:
    return not text.isascii() or "\\u" in text or "\\U" in text or "\\N" in text


def _is_large_number(text: str) -> bool:
    if _LARGE_EXPONENT.fullmatch(text[:_MAX_NUMBER]):
        return True
    return len(text) > _MAX_NUMBER and _NUMERIC.fullmatch(text[:_MAX_NUMBER]) is not None
