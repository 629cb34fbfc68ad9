"""The functions that tasks may run: marked with ``@task``, enqueued here, or told to a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

import pydantic

from sitq._fields import describe
from sitq._names import check_kind, look_up, name_of, script_of
from sitq.errors import ValidationError
from sitq.functions import TaskDefaults, TaskFunction
from sitq.ids import R_co

if TYPE_CHECKING:
    from types import ModuleType

    from sitq.models import RetryPolicy

__all__ = ["Call", "Registry", "TaskDefaults", "TaskFunction", "call", "known", "name_of", "task"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])
# functools.wraps copies it: what wraps a marked function has its options.
_MARK: Final = "__sitq_defaults__"


class Registry:
    """Functions by their stored names.

    Args:
        parent: asked for names that this registry does not have.
    """

    __slots__ = ("_by_function", "_by_name", "_marked", "_parent")

    def __init__(self, parent: Registry | None = None) -> None:
        self._parent: Final = parent
        self._by_function: Final[dict[object, TaskFunction[Any]]] = {}
        self._by_name: Final[dict[str, TaskFunction[Any]]] = {}
        self._marked: Final[dict[str, Callable[..., Any]]] = {}

    def add(self, func: Callable[..., Any]) -> TaskFunction[Any]:
        """Add a function, or find it; another one of the same name is replaced.

        Raises:
            ValidationError: no name leads to it; the text says why and what to do.
        """
        try:
            found = self._by_function.get(func)
        except TypeError:  # an object that cannot be hashed is no function either
            found = None
        return found or self._add(func)

    def add_module(self, module: ModuleType) -> None:
        """Add every function that a module defines and that a task can run.

        Those at its top level, and the static and class methods of its classes.
        """
        for entry in _own_callables(module):
            try:
                self.add(entry)
            except ValidationError:  # classes, generator functions, callable objects
                continue

    def get(self, name: str) -> TaskFunction[Any] | None:
        """Return the function of a stored name, if it is known; nothing is imported."""
        found = self._by_name.get(name) or self._get_marked(name) or self._get_of_script(name)
        if found is None and self._parent is not None:
            return self._parent.get(name)
        return found

    def mark(self, func: Callable[..., Any]) -> None:
        """Add a function that its module is still defining; its name is followed later.

        Raises:
            ValidationError: it is a kind of callable that no name leads to.
        """
        name = check_kind(func)
        replaced = self._by_name.pop(name, None)
        if replaced is not None:
            self._by_function.pop(replaced.func, None)
        self._marked[name] = func

    def _add(self, func: Callable[..., Any]) -> TaskFunction[Any]:
        name = name_of(func)
        added = TaskFunction[Any](name, func, getattr(func, _MARK, None))
        replaced = self._by_name.get(name)
        if replaced is not None:
            self._by_function.pop(replaced.func, None)
        self._by_name[name] = self._by_function[func] = added
        self._marked.pop(name, None)
        return added

    def _get_marked(self, name: str) -> TaskFunction[Any] | None:
        """Add what a marked function has become: a class method, or wrapped once more."""
        func = self._marked.get(name)
        if func is None:
            return None
        found = look_up(func.__module__, func.__qualname__)
        if found is None or func not in _layers(found):
            return None
        try:
            return self.add(found)
        except ValidationError:
            return None

    def _get_of_script(self, name: str) -> TaskFunction[Any] | None:
        """Find the function of a script that this process has imported as a module."""
        script, _, qualname = name.rpartition(":")
        names = [*self._by_name, *self._marked]
        for other in names:
            module, _, its = other.rpartition(":")
            if its == qualname and module != script and script_of(module) == script:
                return self._by_name.get(other) or self._get_marked(other)
        return None


known: Final = Registry()


def _own_callables(module: ModuleType) -> list[Any]:
    """Return what a module defines itself; not what it has imported."""
    found: list[Any] = []
    for entry in list(vars(module).values()):
        if getattr(entry, "__module__", None) != module.__name__ or not callable(entry):
            continue
        found.append(entry)
        if isinstance(entry, type):
            found += [
                getattr(entry, name)
                for name, member in list(vars(entry).items())
                if isinstance(member, staticmethod | classmethod)
            ]
    return found


def _layers(func: Any) -> list[object]:
    """Return a callable, what it is bound from, and what it wraps."""
    layers: list[object] = []
    while func is not None and func not in layers:
        layers.append(func)
        func = getattr(func, "__func__", None) or getattr(func, "__wrapped__", None)
    return layers


@overload
def task(func: F, /) -> F: ...
@overload
def task(
    *,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    queue: str | None = None,
    priority: int | None = None,
    result_ttl: float | None = None,
) -> Callable[[F], F]: ...
def task(
    func: F | None = None,
    /,
    *,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    queue: str | None = None,
    priority: int | None = None,
    result_ttl: float | None = None,
) -> F | Callable[[F], F]:
    """Mark a function as one that workers may run, with options for its tasks.

    The function itself is returned. Put ``@staticmethod`` and ``@classmethod`` above.

    Args:
        func: the function, where the decorator has no options.
        retry: the retry policy.
        timeout: seconds that one attempt may take.
        queue: the queue's name.
        priority: -100 to 100; higher runs first.
        result_ttl: seconds that the result is kept after the end.

    Raises:
        ValidationError: an option is out of its range, or no name can lead to the function.
    """
    try:
        defaults = TaskDefaults(
            retry=retry, timeout=timeout, queue=queue, priority=priority, result_ttl=result_ttl
        )
    except pydantic.ValidationError as error:
        raise ValidationError(f"@task: {describe(error)}") from None

    def mark(func: F) -> F:
        check_kind(func)
        try:
            setattr(func, _MARK, defaults)
        except AttributeError:
            raise ValidationError(
                "@task: only functions defined in Python can be marked; define one that calls it"
            ) from None
        known.mark(func)
        return func

    return mark if func is None else mark(func)


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """A function and its arguments, for ``enqueue_many``; made by `call`.

    Args:
        func: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)


@overload
def call(func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
@overload
def call(func: Callable[P, Awaitable[R] | R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
def call(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """Put a function and its arguments together, checked by type checkers as a call is."""
    return Call(func, args, kwargs)
