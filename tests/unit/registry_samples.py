"""Functions of all kinds, for the tests of their names; a module that a worker could be given."""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from math import floor
from typing import Any, NewType

from sitq.models import RetryPolicy
from sitq.payload.registry import task

UserId = NewType("UserId", int)
imported = floor


def logged(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


def add(a: int, b: int) -> int:
    return a + b


async def add_async(a: int, b: int) -> int:
    return a + b


@logged
def wrapped(a: int) -> int:
    return a


@functools.lru_cache
def cached(a: int) -> int:
    return a


@logged
@task(timeout=5, queue="mail", priority=1, result_ttl=60, retry=RetryPolicy(max_attempts=2))
def marked(a: int) -> int:
    return a


@task
def marked_only(a: int) -> int:
    return a


def replaced() -> int:
    return 1


first = replaced


def replaced() -> int:  # type: ignore[no-redef]
    return 2


class Service:
    def method(self) -> None: ...

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def of_class(cls, a: int) -> str:
        return f"{cls.__name__} {a}"

    @classmethod
    @task(timeout=7)
    def marked(cls) -> str:
        return cls.__name__

    @staticmethod
    @task
    def marked_static() -> None: ...

    def __call__(self) -> None: ...


class Sub(Service):
    class Inner:
        @staticmethod
        def static() -> None: ...


def numbers() -> Iterator[int]:
    yield 1


async def numbers_async() -> AsyncIterator[int]:
    yield 1


@contextlib.contextmanager
def context() -> Iterator[None]:
    yield


def closure() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


anonymous = lambda: None  # noqa: E731
partial = functools.partial(add, 1)
bound = Service().method
callable_object = Service()
deleted = typing.cast("Any", closure)
