"""Validators that refuse fields which a model does not know, whatever the model does with them.

A field that this version of a program does not know comes from another version of it. A model
that ignores it would lose it without a word. ``extra="allow"`` keeps it, so that stays allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticCustomError, SchemaValidator, core_schema

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["UNKNOWN_FIELD", "Validate", "nodes", "refusing_validator"]

Validate = Callable[[object], Any]

UNKNOWN_FIELD: Final = "sitq_unknown_field"
_FIELDS: Final = frozenset({"model-fields", "typed-dict", "dataclass-args"})
# What is no part of the way that values are validated, or holds values.
_KEPT: Final = frozenset({"config", "default", "metadata", "serialization"})


def refusing_validator(adapter: TypeAdapter[Any]) -> Validate:
    """Return what validates plain values, fields by their names, and refuses unknown fields."""
    schema = adapter.core_schema
    if not any(map(_needs_rewrite, nodes(schema))):
        return partial(
            adapter.validate_python, strict=False, extra="forbid", by_alias=False, by_name=True
        )
    # `extra="forbid"` would also hold for the models that allow more, so each gets its own rule.
    # The validators that pydantic has already built for the models' classes know nothing of it.
    validator = SchemaValidator(_refusing(schema, {}), _use_prebuilt=False)
    return partial(validator.validate_python, strict=False, by_alias=False, by_name=True)


def _needs_rewrite(node: Mapping[str, Any]) -> bool:
    config = node.get("config")
    return (
        node.get("extra_behavior") == "allow"
        or (isinstance(config, Mapping) and config.get("extra_fields_behavior") == "allow")
        or node.get("custom_init") is True
    )


def nodes(schema: object) -> Iterator[Mapping[str, Any]]:
    """Give all parts of a core schema."""
    if isinstance(schema, Mapping):
        yield schema
        schema = [value for key, value in schema.items() if key not in _KEPT]
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from nodes(each)


def _refusing(schema: Any, config: Mapping[str, Any]) -> Any:
    """Copy a schema with the rule that unknown fields are refused; ``config`` is the enclosing."""
    if isinstance(schema, list | tuple):
        return type(schema)(_refusing(each, config) for each in schema)
    if not isinstance(schema, Mapping):
        return schema
    kind = schema.get("type")
    if kind in {"model", "dataclass"}:
        config = schema.get("config") or {}
    elif kind == "typed-dict":
        config = schema.get("config") or config
    copy = {
        key: value if key in _KEPT else _refusing(value, config) for key, value in schema.items()
    }
    allows = schema.get("extra_behavior") or config.get("extra_fields_behavior")
    if kind in _FIELDS and allows != "allow":
        copy["extra_behavior"] = "forbid"
    if kind == "model" and schema.get("custom_init") and allows != "allow":
        return _checked_before(copy)
    return copy


def _checked_before(model: dict[str, Any]) -> Any:
    """Check the fields before a model's own ``__init__``, which gets past the rule."""
    fields = next((node["fields"] for node in nodes(model) if node.get("type") in _FIELDS), None)
    if not isinstance(fields, Mapping):  # a root model
        return model

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in fields:
                    raise PydanticCustomError(UNKNOWN_FIELD, "unknown field {name}", {"name": name})
        return value

    ref = model.pop("ref", None)
    return core_schema.no_info_before_validator_function(check, model, ref=ref)
