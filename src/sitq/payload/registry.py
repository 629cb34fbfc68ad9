"""The registry of functions that tasks may run: marked, enqueued here, or given to a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, ParamSpec, TypeVar, overload

import pydantic

from sitq._builtin_types import plain
from sitq._module_names import is_module_named, is_same_module, module_name
from sitq._validation import describe
from sitq.errors import ValidationError
from sitq.ids import R_co
from sitq.payload.functions import TaskDefaults, TaskFunction, check_retry
from sitq.payload.names import (
    address_of,
    check_kind,
    check_names,
    look_up,
    name_of,
    one_line,
)

if TYPE_CHECKING:
    from types import ModuleType

    from sitq.models import RetryPolicy


__all__ = [
    "Call",
    "Registry",
    "TaskDefaults",
    "TaskFunction",
    "call",
    "default_registry",
    "name_of",
    "task",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])
# functools.wraps copies it, so a wrapper of a marked function has its options.
_MARK: Final = "__sitq_task__"
_MOST_SIMILAR: Final = 3
_MOST_COMPARED: Final = 500
_LONGEST_COMPARED: Final = 200
# How alike two names must be, from 0 to 1.
_SIMILAR: Final = 0.75


class Registry:
    """Functions by their stored names.

    A function has one name that is stored: its own from ``@task(name=...)``, else
    ``module:qualname``. It is found by that name, by ``module:qualname``, by its aliases, and by
    what a module that was added calls it.

    Args:
        parent: asked for names that this registry does not have.
    """

    __slots__ = ("_by_function", "by_name", "lineage", "marked")

    def __init__(self, parent: Registry | None = None) -> None:
        self.lineage: Final[tuple[Registry, ...]] = (self, *(parent.lineage if parent else ()))
        self._by_function: Final[dict[object, TaskFunction[Any]]] = {}
        self.by_name: Final[dict[str, TaskFunction[Any]]] = {}
        self.marked: Final[dict[str, Callable[..., Any]]] = {}

    def add(self, func: Callable[..., Any]) -> TaskFunction[Any]:
        """Add a function, or return its entry; one of the same module and name is replaced.

        Raises:
            ValidationError: no name leads to it, or another function has one of its names; the
                text says why and what to do.
        """
        try:
            found = self._by_function.get(func)
        except TypeError:  # an object that cannot be hashed is not a function
            found = None
        return found or self._add(func)

    def add_module(self, module: ModuleType) -> None:
        """Add every function that a module offers and that a task can run.

        1. Those that it defines itself at its top level, and the static and class methods of its
           classes.
        2. Imported functions that its ``__all__`` lists or that are marked with `task`. In a
           package, also those that a module of the package defines. Submodules are not searched.
        3. A function that has another name here than where it is defined is known by both names.

        Raises:
            ValidationError: two functions claim one name.
        """
        for path, entry in _offered(module):
            try:
                name_of(entry)
            except Exception:  # noqa: BLE001, S112 - classes and callable objects, some with code
                continue  # of their own that runs at any attribute
            added = self.add(entry)
            name = f"{module_name(module.__name__)}:{path}"
            if self._owner(name) is None:
                self.by_name[name] = added

    def get(self, name: str) -> TaskFunction[Any] | None:
        """Return the function of a stored name, if it is known; nothing is imported.

        Look-ups in dictionaries come first, here and in the parents. The scan for a function in the
        same file comes last.
        """
        for registry in self.lineage:
            found = registry.by_name.get(name)
            if found is not None:
                return found
        for registry in self.lineage:
            found = registry.add_marked(name)
            if found is not None:
                return found
        return next(filter(None, (each.find_by_file(name) for each in self.lineage)), None)

    def names(self) -> set[str]:
        """Return all names that are known."""
        return set[str]().union(*(each.by_name.keys() | each.marked for each in self.lineage))

    def similar_names(self, name: str) -> list[str]:
        """Return up to three known names that are similar to an unknown one."""
        import difflib

        names = self.names()
        _, _, qualname = name.rpartition(":")
        same = {other for other in names if other.rpartition(":")[2] == qualname}
        # The name comes from a store, and the comparison takes the product of the lengths.
        among = sorted(same or names)[:_MOST_COMPARED]
        wanted = name[:_LONGEST_COMPARED]
        cutoff = 0.0 if same else _SIMILAR
        return difflib.get_close_matches(wanted, among, n=_MOST_SIMILAR, cutoff=cutoff)

    def mark(self, func: Callable[..., Any]) -> None:
        """Add a function while its module still defines it; its name is resolved later."""
        for name in self._claim(func, check_kind(func)):
            self.marked[name] = func

    def _add(self, func: Callable[..., Any]) -> TaskFunction[Any]:
        names = self._claim(func, name_of(func))
        mark = _mark_of(func)
        added = TaskFunction[Any](names[0], func, None if mark is None else mark.defaults)
        for name in names:
            self.by_name[name] = added
            self.marked.pop(name, None)
        self._by_function[func] = added
        return added

    def _claim(self, func: Callable[..., Any], default: str) -> list[str]:
        """Take the names of a function from those that had them; the one to store is first."""
        names = _names_of(func, default)
        for name in names:
            self._check_claim(name, func)
        for name in names:
            replaced = self.by_name.get(name)
            if replaced is not None:
                self._by_function.pop(replaced.func, None)
                for other, each in list(self.by_name.items()):
                    if each is replaced:
                        del self.by_name[other]
        return names

    def _owner(self, name: str) -> Callable[..., Any] | None:
        """Return the function that has a name, though its module may still define it."""
        for registry in self.lineage:
            found = registry.by_name.get(name)
            owner = registry.marked.get(name) if found is None else found.func
            if owner is not None:
                return owner
        return None

    def _check_claim(self, name: str, func: Callable[..., Any]) -> None:
        """Check that no other function has this name, where ``@task`` gave it to one of them."""
        owner = self._owner(name)
        if owner is None or _is_same(owner, func) or _is_gone(owner):
            return
        if name not in (*_given_names(owner), *_given_names(func)):
            return  # one module has replaced another
        one, other = (":".join(address_of(each)) for each in (owner, func))
        raise ValidationError(
            f"the name {one_line(name)!r} is claimed by {one} and by {other}: "
            "give one of them another name= or other aliases="
        )

    def add_marked(self, name: str) -> TaskFunction[Any] | None:
        """Add a marked function in its final form: bound as a class method, or wrapped."""
        func = self.marked.get(name)
        if func is None:
            return None
        found = look_up(func.__module__, func.__qualname__)
        if found is None or func not in _layers(found):
            return None
        try:
            return self.add(found)
        except ValidationError:
            return None

    def find_by_file(self, name: str) -> TaskFunction[Any] | None:
        """Find a function whose module had another name in the process that stored the task."""
        where, _, qualname = name.rpartition(":")
        functions = {each.func: each for each in list(self.by_name.values())}
        for func in [*functions, *list(self.marked.values())]:
            module, path = address_of(func)
            if path != qualname or not is_module_named(where, module):
                continue
            found = functions.get(func) or self.add_marked(f"{module_name(module)}:{path}")
            if found is not None:
                self.by_name[name] = found
                return found
        return None


default_registry: Final = Registry()


class _Mark(NamedTuple):
    """The arguments of ``@task`` for a function, and the function's address."""

    defaults: TaskDefaults
    name: str | None
    aliases: tuple[str, ...]
    address: tuple[str, str]


def _mark_of(func: Callable[..., Any]) -> _Mark | None:
    mark = getattr(func, _MARK, None)
    return mark if isinstance(mark, _Mark) else None


def _given_names(func: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names that a function was given; an inherited class method has none of them."""
    mark = _mark_of(func)
    if mark is None or mark.address != address_of(func):
        return ()
    return mark.aliases if mark.name is None else (mark.name, *mark.aliases)


def _names_of(func: Callable[..., Any], default: str) -> list[str]:
    """Return all names of a function, the one to store first."""
    mark = _mark_of(func)
    given = _given_names(func)
    names = (*given, default) if mark is not None and mark.name is not None else (default, *given)
    return list(dict.fromkeys(names))


def _is_same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether two functions have one definition, whose file was loaded twice."""
    if one is other:
        return True
    (module, path), (other_module, other_path) = address_of(one), address_of(other)
    return path == other_path and is_same_module(module, other_module)


def _is_gone(func: Callable[..., Any]) -> bool:
    """Return whether a top-level function is gone from its module, as in a notebook."""
    module, path = address_of(func)
    return "." not in path and func not in _layers(look_up(module, path))


def _offered(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield what a module offers to workers: the path in the module, and the object."""
    listed = getattr(module, "__all__", ())
    listed = listed if isinstance(listed, list | tuple) else ()
    for attribute, entry in list(vars(module).items()):
        if not callable(entry) or not (attribute in listed or _is_of(entry, module)):
            continue
        yield attribute, entry
        if isinstance(entry, type):
            for name, member in list(vars(entry).items()):
                if isinstance(member, staticmethod | classmethod):
                    yield f"{attribute}.{name}", getattr(entry, name)


def _is_of(entry: Any, module: ModuleType) -> bool:
    """Return whether the module or a submodule defines this, or ``@task`` marks it."""
    try:
        origin, mark = getattr(entry, "__module__", None), _mark_of(entry)
    except Exception:  # noqa: BLE001 - a proxy such as flask.request, which is unbound here
        return False
    is_inner = isinstance(origin, str) and f"{origin}.".startswith(f"{module.__name__}.")
    return is_inner or mark is not None


def _layers(func: Any) -> list[object]:
    """Return a callable, the function it is bound from, and what it wraps."""
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
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    queue: str | None = None,
    priority: int | None = None,
    result_ttl: float | None = None,
    store_result: bool = True,
) -> Callable[[F], F]: ...
def task(
    func: F | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    queue: str | None = None,
    priority: int | None = None,
    result_ttl: float | None = None,
    store_result: bool = True,
) -> F | Callable[[F], F]:
    """Mark a function as one that workers may run, with options for its tasks.

    The function itself is returned. Put ``@staticmethod`` and ``@classmethod`` above.

    Args:
        func: the function, where the decorator has no options.
        name: the name to store instead of ``module:qualname``, which the function may leave then:
            1 to 200 letters, digits and ``_ . : / -``. One function has it in a process.
        aliases: more names that the function is found by, those that it had before say.
        retry: the retry policy.
        timeout: seconds that one attempt may take.
        queue: the queue's name.
        priority: -100 to 100; higher runs first.
        result_ttl: seconds that the result is kept after the end.
        store_result: False: what the function returns is neither checked nor stored. Its tasks end
            as ``success`` all the same, and their value reads as ``None``.

    Raises:
        ValidationError: an option is out of its range, no name can lead to the function, or
            another function has one of its names.
    """
    own_name, given = check_names(name, aliases)
    try:
        defaults = TaskDefaults(
            retry=None if retry is None else check_retry("@task: retry", retry),
            timeout=plain(timeout),
            queue=plain(queue),
            priority=plain(priority),
            result_ttl=plain(result_ttl),
            store_result=store_result,
        )
    except pydantic.ValidationError as error:
        raise ValidationError(f"@task: {describe(error)}") from None

    def mark(func: F) -> F:
        check_kind(func)
        try:
            setattr(func, _MARK, _Mark(defaults, own_name, given, address_of(func)))
        except AttributeError:
            raise ValidationError(
                "@task: only functions defined in Python can be marked; define one that calls it"
            ) from None
        default_registry.mark(func)
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
    """Put a function and its arguments together, for ``enqueue_many``.

    Type checkers check the arguments as those of a call. Nothing else is checked before the call
    is enqueued.

    Args:
        func: an async or plain function that a worker can find by its name.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    return Call(func, args, kwargs)
