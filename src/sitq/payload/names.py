"""Stored names: ``module:qualified.name``, from a function to its name and back.

A name is resolved only among the modules that this process has imported; it imports none. What is
refused raises a `ValidationError` that says what to do.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
from collections.abc import Iterable
from typing import Any, Final

from sitq._builtin_types import plain
from sitq._module_names import module_name
from sitq._validation import with_article
from sitq.errors import ValidationError

__all__ = [
    "address_of",
    "check_kind",
    "check_names",
    "look_up",
    "name_of",
    "one_line",
]

_MOST_SHOWN: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")
_ALIAS: Final = re.compile(r".{1,1024}")
_MOCKS: Final = frozenset({"unittest.mock", "mock.mock"})
_INSTEAD_OF_MOCKS: Final = (
    "a worker finds a function by its name, and would run what is there. In a test, mock what the "
    "function calls and run the task with Worker.drain(), or mock the queue and look at the calls "
    "of its enqueue"
)
_SLOT_WRAPPERS: Final = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)


def name_of(func: Any) -> str:
    """Return the stored name of a function, once it is certain that the name leads back to it."""
    name = check_kind(func)
    module, qualname = address_of(func)
    found = look_up(module, qualname)
    if found is func or (isinstance(func, types.MethodType) and found == func):
        return name
    shown = f"{module}.{qualname}"
    if found is None:
        raise ValidationError(
            f"{shown} does not exist (any more): a worker finds a function by its name; "
            "define it at the top level of its module, under the name of its def"
        )
    if _is_mock(found):
        raise ValidationError(f"{shown} is replaced by a mock: {_INSTEAD_OF_MOCKS}")
    raise ValidationError(
        f"{shown} is another object than the function given, which was replaced there or is "
        "wrapped by a decorator: use the one that the name leads to"
    )


def one_line(text: str, most: int = _MOST_SHOWN) -> str:
    """Return a stored text for use in a message: one line, at most ``most`` characters."""
    return (text if text.isprintable() else ascii(text)[1:-1])[:most]


def check_kind(func: Any) -> str:
    """Return the name that a function has if it is where its name says."""
    reason = _unusable(func)
    if reason is not None:
        raise ValidationError(reason)
    module, qualname = address_of(func)
    where = module_name(module)
    if not where.isprintable():
        raise ValidationError(
            f"{qualname}: the path of its script cannot be stored, since it holds control "
            "characters or is not UTF-8: rename the file or its folder, or move the function "
            "to a module"
        )
    return f"{where}:{qualname}"


def check_names(name: object, aliases: object) -> tuple[str | None, tuple[str, ...]]:
    """Check the names that a function is given, and return them as plain texts."""
    name = plain(name)
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValidationError(
            "@task: name: give 1 to 200 letters, digits and _ . : / - as str "
            f"(got {type(name).__name__})"
        )
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise ValidationError(
            '@task: aliases: give a tuple of names, ("old.module:send",) say '
            f"(got {type(aliases).__name__})"
        )
    checked = tuple(map(plain, aliases))
    for alias in checked:
        if not (isinstance(alias, str) and _ALIAS.fullmatch(alias) and alias.isprintable()):
            raise ValidationError(
                "@task: aliases: give stored names, 1 to 1,024 printable characters each, as str "
                f"(got {type(alias).__name__})"
            )
    return name, checked


def look_up(module: str, qualname: str) -> Any:
    """Return what a name resolves to in an imported module, or ``None``."""
    found: Any = sys.modules.get(module)
    for step in qualname.split("."):
        found = getattr(found, step, None)
    return found


def address_of(func: Any) -> tuple[str, str]:
    """Return the module and the qualified name of a function."""
    if isinstance(func, types.MethodType):  # of a class: named by the class it was taken from
        owner: Any = func.__self__
        return owner.__module__, f"{owner.__qualname__}.{func.__name__}"
    return func.__module__, func.__qualname__


def _unusable(func: Any) -> str | None:
    """Return why a callable has no usable name, and what to do; ``None`` if it has one."""
    if _is_mock(func):
        return f"a mock ({type(func).__qualname__}) was given for the function: {_INSTEAD_OF_MOCKS}"
    return _unusable_object(func) or _unusable_function(func)


def _is_mock(func: Any) -> bool:
    """Return whether this is a mock of `unittest.mock`, or a function that stands for one."""
    stands_for = getattr(func, "__dict__", {}).get("mock")  # that of create_autospec
    kinds = [*type(func).__mro__, *type(stands_for).__mro__]
    return any(getattr(kind, "__module__", None) in _MOCKS for kind in kinds)


def _unusable_object(func: Any) -> str | None:
    shown = getattr(func, "__qualname__", type(func).__qualname__)
    if isinstance(func, classmethod | staticmethod):
        kind = type(func).__name__
        return f"{shown} is a {kind} object: put @{kind} above the other decorator"
    if not callable(func):
        return f"{with_article(type(func))} is not a function: give the function itself"
    if isinstance(func, functools.partial):
        return "a functools.partial has no name: define a function that makes the call"
    if isinstance(func, type):
        return f"{shown} is a class: define a function that makes the instance"
    if isinstance(func, _SLOT_WRAPPERS) or (
        hasattr(func, "__self__") and not isinstance(func.__self__, type | types.ModuleType)
    ):
        return (
            f"{shown} is a method bound to an instance, which cannot be stored: define a function, "
            "a static method or a class method, and pass what it needs as arguments"
        )
    if not (inspect.isroutine(func) or hasattr(func, "__wrapped__") or hasattr(func, "__code__")):
        return (
            f"a callable object of type {type(func).__qualname__}: define a function that calls it"
        )
    return None


def _unusable_function(func: Any) -> str | None:
    texts = [getattr(func, each, None) for each in ("__qualname__", "__module__")]
    if not all(isinstance(text, str) for text in texts):
        return f"{with_article(type(func))} without a name: define a function that calls it"
    shown = func.__qualname__
    if shown.endswith("<lambda>"):
        return "a lambda has no name: define a function at the top level of a module"
    if "<locals>" in address_of(func)[1]:
        return (
            f"{shown} is defined inside a function, where no worker can find it: move it to the "
            "top level of its module, and pass what it closes over as arguments"
        )
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        return f"{shown} is a generator function: return a list instead of yielding"
    return None
