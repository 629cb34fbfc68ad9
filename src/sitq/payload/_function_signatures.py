"""Signatures of task functions: which calls fit, and how each parameter's value is stored."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any, Final, ParamSpecArgs, ParamSpecKwargs

import typing_extensions

from sitq.errors import SerializationError, ValidationError
from sitq.payload._value_codec import ValueCodec, name_of_annotation
from sitq.resources import resources_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Signature", "spelled_out"]

_AWAITABLES: Final = frozenset({"Awaitable", "Coroutine"})
_UNPACKS: Final = (typing.Unpack, typing_extensions.Unpack)
_QUALIFIERS: Final = (typing.Required, typing.NotRequired, typing_extensions.ReadOnly)
_MAX_ARGUMENTS: Final = 10_000
# Names in payloads may be any, so the shapes of calls that are kept are bounded.
_MAX_KEPT: Final = 100
_MAX_KEPT_ARGUMENTS: Final = 100

Shape = int | tuple[int | str, ...]
Codecs = tuple[list[ValueCodec], dict[str, ValueCodec]]


class Signature:
    """A function's parameters and return value, with their codecs."""

    __slots__ = (
        "_bind",
        "_label",
        "_positional",
        "_rest",
        "named",
        "resources",
        "rest_named",
        "result",
        "shapes",
    )

    def __init__(self, func: Callable[..., Any], label: str) -> None:
        scope = _Scope(func)
        signature = scope.spell_out(inspect.signature(func))
        # What the worker gives: no arguments of the task.
        self.resources: Final = resources_of(signature)
        if self.resources:
            signature = _without(signature, self.resources, label)
        self._bind: Final = signature.bind
        self._label: Final = label
        self._positional: Final[list[ValueCodec]] = []
        self._rest: list[ValueCodec] = []
        self.named: Final[dict[str, ValueCodec]] = {}
        self.rest_named: ValueCodec | None = None
        # What `codecs` has found: a call fits by its shape, whatever the values are.
        self.shapes: Final[dict[Shape, Codecs]] = {}
        for name, parameter in signature.parameters.items():
            codec = scope.codec(f"{label}: parameter {name!r}", parameter.annotation)
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = [codec]
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.rest_named = codec
            else:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    self._positional.append(codec)
                if parameter.kind is not parameter.POSITIONAL_ONLY:
                    self.named[name] = codec
        # A worker awaits an awaitable result of a plain function too.
        self.result: Final = scope.codec(
            f"{label}: the return value", signature.return_annotation, awaited=True
        )

    def codecs(self, shape: Shape, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Codecs:
        """Return the codecs for the arguments of a call, by position and by name.

        Args:
            shape: the number of positional arguments, and the names of the others.
            args: the positional arguments.
            kwargs: the others.

        Raises:
            TypeError: the call does not fit; the text says why.
            SerializationError: it has too many arguments, or a name that is not a str.
        """
        size = len(args) + len(kwargs)
        if not {str}.issuperset(map(type, kwargs)):
            raise SerializationError(f"{self._label}: the name of an argument is not a str")
        if size > _MAX_ARGUMENTS:
            raise SerializationError(
                f"{self._label}: more than {_MAX_ARGUMENTS:,} arguments; pass one list of them"
            )
        if self.resources:
            self._refuse_resources(args, kwargs)
        self._bind(*args, **kwargs)
        named = self.named
        if self.rest_named is not None:
            named = dict.fromkeys(kwargs, self.rest_named) | named
        found = (self._positional + self._rest * (len(args) - len(self._positional)), named)
        if size <= _MAX_KEPT_ARGUMENTS and len(self.shapes) < _MAX_KEPT:
            self.shapes[shape] = found
        return found

    def _refuse_resources(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise a TypeError that says why, if a resource is given as an argument."""
        given = [name for name in self.resources if name in kwargs]
        if not given and len(args) > len(self._positional) and not self._rest:
            given = list(self.resources)
        if given:
            raise TypeError(
                f"{', '.join(map(repr, given))} is a resource, which the worker gives to the task: "
                "it is no argument; leave it out"
            )


def _without(
    signature: inspect.Signature, names: Mapping[str, object], label: str
) -> inspect.Signature:
    """Return a signature without some parameters; what follows them is given by keyword.

    Raises:
        ValidationError: one of the parameters cannot be given by keyword.
    """
    kept: list[inspect.Parameter] = []
    is_after = False
    for name, parameter in signature.parameters.items():
        if name in names:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                hint = "the worker gives a resource by keyword; move it after the '/'"
                raise ValidationError(f"{label}: parameter {name!r}: {hint}")
            is_after = True
        elif not is_after or parameter.kind in {parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD}:
            kept.append(parameter)
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            kept.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
    return signature.replace(parameters=kept)


def spelled_out(func: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature, with the keywords that an ``Unpack`` stands for."""
    signature = inspect.signature(func)
    return _Scope(func).spell_out(signature)


class _Scope:
    """Resolves the annotations of one function, each separately."""

    def __init__(self, func: Callable[..., Any]) -> None:
        inner = inspect.unwrap(func, stop=lambda each: hasattr(each, "__signature__"))
        self._globals: Final[dict[str, Any]] = getattr(inner, "__globals__", {})
        self._type_params: Final = {
            param.__name__: param for param in getattr(inner, "__type_params__", ())
        }

    def codec(self, label: str, annotation: Any, *, awaited: bool = False) -> ValueCodec:
        problem = None
        try:
            resolved = Any if annotation is inspect.Parameter.empty else self._resolve(annotation)
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            resolved, problem = Any, _unresolved(annotation, error)
        origin, args = typing.get_origin(resolved), typing.get_args(resolved)
        if awaited and getattr(origin, "__name__", None) in _AWAITABLES:
            resolved = args[-1]
        elif origin in _UNPACKS:
            resolved, problem = Any, _unknown_keys(*args)
        elif isinstance(resolved, ParamSpecArgs | ParamSpecKwargs):
            resolved = Any
        return ValueCodec(resolved, label, problem)

    def spell_out(self, signature: inspect.Signature) -> inspect.Signature:
        """Write ``**kwargs: Unpack[SomeTypedDict]`` as the keyword parameters that it stands for.

        An annotation that cannot be resolved stays, for `codec` to say why.
        """
        parameters = list(signature.parameters.values())
        if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            return signature
        last = parameters.pop()
        try:
            resolved = self._resolve(last.annotation)
            if typing.get_origin(resolved) not in _UNPACKS:
                return signature
            return signature.replace(
                parameters=[*parameters, *_keys_of(*typing.get_args(resolved))]
            )
        except Exception:  # noqa: BLE001 - an annotation is any expression
            return signature

    def _resolve(self, annotation: Any) -> Any:
        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        return typing.get_type_hints(holder, self._globals, self._type_params, include_extras=True)[
            "it"
        ]


def _keys_of(annotation: Any) -> Iterator[inspect.Parameter]:
    """Return the keys of a TypedDict as keyword parameters."""
    kind = typing.get_origin(annotation) or annotation
    required = kind.__required_keys__
    for name, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
        needed, inner = name in required, hint
        origin: object = typing.get_origin(inner)
        while origin in _QUALIFIERS:
            needed = origin is typing.Required or (needed and origin is not typing.NotRequired)
            inner = typing.get_args(inner)[0]
            origin = typing.get_origin(inner)
        default = inspect.Parameter.empty if needed else None
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=inner
        )


def _unknown_keys(annotation: Any) -> str | None:
    """Return why the keys of a TypedDict are unknown; ``None`` if they are known, or it is none."""
    if typing_extensions.is_typeddict(typing.get_origin(annotation) or annotation):
        try:
            list(_keys_of(annotation))
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            return _unresolved(annotation, error)
    return None


def _unresolved(annotation: object, error: Exception) -> str:
    return (
        f"its annotation {name_of_annotation(annotation)} cannot be resolved "
        f"({type(error).__name__}: {error}); define or import that name at run time, "
        "not only under TYPE_CHECKING"
    )
