"""Resources: what a worker opens once and hands to its tasks, such as a pool of connections."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast, overload

from sitq.errors import UsageError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

__all__ = ["checked_factory", "name_of_factory", "resources_of", "shared"]

T = TypeVar("T")


@overload
def shared(factory: Callable[[], AbstractAsyncContextManager[T]]) -> T: ...
@overload
def shared(factory: Callable[[], AbstractContextManager[T]]) -> T: ...
@overload
def shared(factory: Callable[[], Awaitable[T]]) -> T: ...
@overload
def shared(factory: Callable[[], T]) -> T: ...
def shared(factory: Callable[[], Any]) -> Any:
    """Mark a parameter of a task's function as a resource, which the worker gives it.

    Use it as the default of the parameter: ``db: Pool = shared(database)``. Such a parameter is no
    argument of the task: an enqueue refuses it, and nothing of it is stored. A worker with
    ``resources=[database]`` opens the resource at its start and passes it by keyword. Who calls the
    function directly, in a test say, gives it as any other argument.

    Type checkers see what a task gets.

    Args:
        factory: makes the resource, without arguments: a function that returns an async context
            manager (``@asynccontextmanager``), a context manager (``@contextmanager``), an
            awaitable (``async def``) or any other object, such as a class. A context manager is
            entered, and exited at the end of the worker.

    Raises:
        ValidationError: ``factory`` is not a function that makes a resource.
    """
    return _SharedParameter(checked_factory("shared", factory))


class _SharedParameter:
    """The default of a parameter that is a resource; whoever uses it gets an error."""

    __slots__ = ("_factory",)

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory: Final = factory

    def __repr__(self) -> str:
        return f"shared({name_of_factory(self._factory)})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what looks at objects, such as copy, asks for these
        self._refuse()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        name = name_of_factory(self._factory)
        raise UsageError(
            f"the resource {name} was not given: only the worker gives it to a task, so a direct "
            f"call of the function has to pass it by keyword; within a task, "
            f"current_task().shared({name}) returns it"
        )

    __aenter__ = __aexit__ = __aiter__ = __await__ = __bool__ = __call__ = _refuse
    __contains__ = __delitem__ = __enter__ = __exit__ = __getitem__ = __iter__ = _refuse
    __len__ = __next__ = __setitem__ = _refuse


def name_of_factory(factory: Callable[[], Any]) -> str:
    """Return the name of a resource for errors and logs."""
    return str(getattr(factory, "__qualname__", type(factory).__qualname__))


def checked_factory(name: str, factory: object) -> Callable[[], Any]:
    """Return what makes a resource.

    Args:
        name: the parameter's name, for the error.
        factory: what is to be checked.

    Raises:
        ValidationError: it makes no resource.
    """
    if isinstance(factory, _SharedParameter):
        raise ValidationError(f"{name}: give the factory itself, without shared(...)")
    if not callable(factory):
        kind = type(factory).__name__
        raise ValidationError(f"{name}: give the function that makes the resource (got {kind})")
    if inspect.isasyncgenfunction(factory) or inspect.isgeneratorfunction(factory):
        is_async = inspect.isasyncgenfunction(factory)
        decorator = "@asynccontextmanager" if is_async else "@contextmanager"
        raise ValidationError(
            f"{name}: {name_of_factory(factory)} is a generator; put {decorator} above it"
        )
    try:
        hash(factory)
    except TypeError:
        raise ValidationError(
            f"{name}: the factory has no hash, by which workers tell resources apart; "
            "give a function"
        ) from None
    return cast("Callable[[], Any]", factory)


def resources_of(signature: inspect.Signature) -> dict[str, Callable[[], Any]]:
    """Return the factories of the parameters of a function that are resources."""
    return {
        name: parameter.default._factory  # noqa: SLF001 - its own module
        for name, parameter in signature.parameters.items()
        if type(parameter.default) is _SharedParameter
    }
