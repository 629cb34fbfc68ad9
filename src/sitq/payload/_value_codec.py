"""`ValueCodec`: dump the values of one annotation to plain values, and load them again."""

from __future__ import annotations

import collections
import collections.abc
import pathlib
import re
import types
from contextlib import suppress
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, cast, get_args, get_origin

import pydantic
from pydantic_core import core_schema

from sitq._builtin_types import plain_member
from sitq._validation import with_article
from sitq.errors import SerializationError, ValidationError
from sitq.ids import TaskId
from sitq.payload._comparison import difference, loss
from sitq.payload._decode_limits import RebuildLimits
from sitq.payload._msgpack import CONTAINERS, LEAVES, items_of
from sitq.payload._stored_form import (
    OTHER_MEMBER,
    ROUNDED,
    UNKNOWN_FIELD,
    by_name,
    field_names,
    is_tagged,
    nodes,
    simplify,
    stored_validator,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_core import ErrorDetails

    from sitq.payload._stored_form import Validate

    Fits = Callable[[Any], bool]

__all__ = ["ValueCodec", "name_of_annotation"]

_ANYTHING: Final = (Any, object)
_UNIONS: Final = (Union, types.UnionType)
_EXACT: Final[dict[object, type]] = {
    **{kind: kind for kind in LEAVES if not issubclass(kind, pathlib.PurePath)},
    None: type(None),
    pathlib.Path: type(pathlib.Path()),
}
_EAGER: Final = (collections.abc.Iterable, collections.abc.Collection)
_LAZY: Final = (
    *_EAGER,
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)
# The texts of these errors come from a validator's own code, or show the value.
_TELLTALE: Final = frozenset(
    {
        "assertion_error",
        "bytes_invalid_encoding",
        "get_attribute_error",
        "iteration_error",
        "mapping_type",
        "union_tag_invalid",
        "uuid_parsing",
        "value_error",
    }
)
_KNOWN_ERRORS: Final = frozenset(
    {*get_args(core_schema.ErrorType), OTHER_MEMBER, ROUNDED} - _TELLTALE
)
_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument", UNKNOWN_FIELD})
_FIELD_NAME: Final = re.compile(r"\bfield_name='(\w+)'")
# The parts of core schemas whose names are stored.
_NAMED: Final = frozenset({"enum", "literal", "model", "named-tuple"})
_MAX_ERRORS: Final = 1000
_SHOWN: Final = 3
_LONGEST_NAME: Final = 100


def name_of_annotation(annotation: object) -> str:
    """Return an annotation's text as it is written, as far as possible."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


class ValueCodec:
    """The codec for one annotation.

    Args:
        annotation: the annotation.
        label: what errors call the parameter or return value.
        problem: why no value can be stored; ``None`` if values can be.
    """

    __slots__ = ("_annotation", "_fits", "_form", "_problem", "label", "leaves")

    def __init__(self, annotation: object, label: str = "", problem: str | None = None) -> None:
        self.label: Final = label
        self._annotation: Final = _eager(annotation)
        self._problem: Final = problem
        self._form: _Form | None = None
        self._fits: Final = None if problem else _fitter(self._annotation)
        leaves = LEAVES if annotation in _ANYTHING else _leaves(annotation)
        # The types whose values are stored unchanged.
        self.leaves: Final = (not problem and leaves) or frozenset[type]()

    def dump(self, value: Any) -> object:
        """Return the plain value to store for ``value``.

        Raises:
            ValidationError: it is not what the annotation says.
            SerializationError: it would not come back as what it is.
        """
        if type(value) in self.leaves:
            return value
        if type(value) is TaskId and str in self.leaves:
            return str(value)  # an id is a text with a hint for type checkers
        if type(value) not in LEAVES:
            exact = plain_member(value)
            if type(exact) in self.leaves:
                return exact
        if self._fits is not None and self._fits(value):
            return _untagged(value)
        try:
            return self._dump(value)
        except RecursionError:
            raise SerializationError("the value is nested too deeply, or holds itself") from None

    def load(self, plain: Any) -> Any:
        """Return the value that ``plain`` stands for.

        Raises:
            SerializationError: what is stored is nested too deeply.
            ValidationError: it does not fit the annotation, or has a field that a model does not
                know.
        """
        if type(plain) in self.leaves:
            return plain
        if self._fits is not None and self._fits(plain):
            return _untagged(plain)
        form = self._form or self._build()
        try:
            form.limits.check(plain)
            return _untagged(_validate(form.read, plain, form.fields))
        except RecursionError:
            raise SerializationError("the value is nested too deeply") from None

    def share(self, plain: Any) -> float:
        """Return the share of the annotation's limits that this value uses."""
        if self._fits is not None and self._fits(plain):
            return 0.0
        return (self._form or self._build()).limits.check(plain)

    def _dump(self, value: Any) -> object:
        form = self._form or self._build()
        valid = _validate(form.check, value, form.fields)
        try:
            plain = simplify(form.write(valid))
        except RecursionError:
            raise
        except Exception as error:  # noqa: BLE001 - serializers of models are the user's code
            named = _FIELD_NAME.search(str(error))
            where = f"at {named[1]}: " if named and named[1] in form.fields else ""
            raise SerializationError(
                f"{where}{with_article(type(value))} cannot be turned into plain values "
                f"({type(error).__name__}); pass plain values instead"
            ) from None
        plain, back = self._read_back(form, valid, plain)
        found = None if valid is value else loss(value, back, form.fields)
        if found:
            raise ValidationError(
                f"the value is not just what the annotation says: {found}; convert it first, "
                "or annotate it with its own type"
            )
        return plain

    def _read_back(self, form: _Form, valid: Any, plain: object) -> tuple[object, Any]:
        """Return the plain value to store, with names if these can be read, and what it becomes."""
        if form.has_names:
            named = by_name(valid, plain)
            # In a union another member may accept the form with names and leave it unchanged.
            with suppress(ValidationError):
                back = self.load(named)
                if difference(valid, back) is None:
                    return named, back
        try:
            back = self.load(plain)
        except ValidationError as error:
            raise SerializationError(
                f"{with_article(type(valid))} could not be read back: {error}"
            ) from None
        found = difference(valid, back, form.fields)
        if found:
            raise SerializationError(f"the value would not come back as what it is: {found}")
        return plain, back

    def _build(self) -> _Form:
        if self._problem:
            raise ValidationError(self._problem)
        name = name_of_annotation(self._annotation)
        if _is_lazy(self._annotation):
            raise ValidationError(
                f"values of {name} are produced while they are read and cannot be stored; "
                "annotate a list or a Sequence"
            )
        try:
            self._form = form = _Form(self._annotation)
        except Exception as error:  # noqa: BLE001 - hooks of types are the user's code
            reason = str(error).split("\n", 1)[0].split(". ", 1)[0]
            raise ValidationError(
                f"the annotation {name} cannot be used ({reason}); "
                "annotate plain types, pydantic models or dataclasses"
            ) from None
        return form


class _Form:
    """How pydantic checks, writes and reads the values of an annotation."""

    __slots__ = ("check", "fields", "has_names", "limits", "read", "write")

    def __init__(self, annotation: Any) -> None:
        adapter = pydantic.TypeAdapter[Any](annotation)
        parts = [*nodes(adapter.core_schema)]
        # Fields are stored by name, whatever their aliases are.
        self.check: Final = partial(
            adapter.validator.validate_python, strict=True, by_alias=False, by_name=True
        )
        self.write: Final = partial(
            adapter.serializer.to_python, by_alias=False, round_trip=True, warnings="error"
        )
        self.read: Final = stored_validator(adapter.core_schema)
        self.limits: Final = RebuildLimits(parts)
        self.fields: Final = frozenset(name for part in parts for name in field_names(part))
        self.has_names: Final = any(part.get("type") in _NAMED for part in parts)


def _untagged(value: Any) -> Any:
    """Refuse a tagged value where a plain value is expected."""
    waiting, seen = [value], set[int]()
    while waiting:
        each = waiting.pop()
        if type(each) not in CONTAINERS or id(each) in seen:
            continue
        seen.add(id(each))
        if is_tagged(each):
            raise ValidationError(
                "it holds what a model or a member of an enum is stored as, and it is none here"
            )
        items = items_of(each)
        if not LEAVES.issuperset(map(type, items)):
            waiting += [item for item in items if type(item) not in LEAVES]
    return value


def _validate(validate: Validate, value: object, fields: frozenset[str]) -> Any:
    try:
        return validate(value)
    except pydantic.ValidationError as error:
        raise ValidationError(_describe(error, fields)) from None
    except RecursionError:
        raise
    except Exception as error:  # noqa: BLE001 - validators are the user's code
        raise ValidationError(f"its validator raised {type(error).__name__}") from None


def _describe(error: pydantic.ValidationError, fields: frozenset[str]) -> str:
    """Describe what is wrong and where; values and keys of dicts are not shown."""
    parts: list[str] = []
    if error.error_count() > _MAX_ERRORS:  # reading that many errors takes too long
        return f"{error.error_count():,} values are not what the annotation says"
    items = error.errors(include_url=False)
    for item in items[:_SHOWN]:
        steps = [str(step) for step in item["loc"] if isinstance(step, int) or step in fields]
        text = _reason(item)
        where = f"at {'.'.join(steps)}: " if steps else ""
        parts.append(f"{where}{text} (got {type(item['input']).__qualname__})")
    if len(items) > _SHOWN:
        parts.append(f"and {len(items) - _SHOWN} more")
    return "; ".join(parts)


def _reason(item: ErrorDetails) -> str:
    kind = item["type"]
    if kind in _UNKNOWN:
        name = item.get("ctx", {}).get("name") if kind == UNKNOWN_FIELD else item["loc"][-1]
        # A field's name in a producer's model is an identifier; other keys may be values.
        known = isinstance(name, str) and name.isidentifier() and len(name) <= _LONGEST_NAME
        return f"unknown field {name!r}" if known else "a field that it does not know"
    return item["msg"] if kind in _KNOWN_ERRORS else "its validator refused it"


def _eager(annotation: Any) -> Any:
    """Read ``Iterable[T]`` as the collections that can be stored."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in _EAGER:
        item = args[0] if args else Any
        lists, tuples, sets, frozensets = cast("tuple[Any, ...]", (list, tuple, set, frozenset))
        return lists[item] | tuples[item, ...] | sets[item] | frozensets[item]
    if origin in _UNIONS:
        return reduce(or_, map(_eager, args))
    return annotation


def _is_lazy(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return origin in _LAZY or any(map(_is_lazy, get_args(annotation)))


def _leaves(annotation: Any) -> frozenset[type] | None:
    try:
        if annotation in _EXACT:
            return frozenset({_EXACT[annotation]})
    except TypeError:  # an annotation that cannot be hashed
        return None
    if get_origin(annotation) in _UNIONS:
        members = [_leaves(member) for member in get_args(annotation)]
        if None not in members:
            return frozenset().union(*filter(None, members))
    return None


def _fitter(annotation: Any) -> Fits | None:
    """Return a quick test for values that fit the annotation and are stored unchanged."""
    if annotation in _ANYTHING or (
        isinstance(annotation, TypeVar) and not (annotation.__bound__ or annotation.__constraints__)
    ):
        return lambda _: True  # the serializer stores it unchanged, or refuses it
    leaves = _leaves(annotation)
    if leaves is not None:
        return lambda value: type(value) in leaves
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in _UNIONS:
        tests = [_fitter(member) for member in args]
        known = [test for test in tests if test is not None]
        return lambda value: any(test(value) for test in known)
    if origin is dict:
        keys, values = map(_items_fitter, args or (Any, Any))
        if keys and values:
            return lambda value: type(value) is dict and keys(value) and values(value.values())
    elif origin in {list, set, frozenset} or (origin is tuple and args[1:] == (...,)):
        items = _items_fitter(args[0] if args else Any)
        if items:
            return lambda value: type(value) is origin and items(value)
    return None


def _items_fitter(annotation: Any) -> Fits | None:
    leaves = _leaves(annotation)
    if leaves is not None:
        return lambda items: leaves.issuperset(map(type, items))
    fits = _fitter(annotation)
    return None if fits is None else lambda items: all(map(fits, items))
