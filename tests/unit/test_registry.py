"""Names lead to functions and back, and only to those that the process knows."""

from __future__ import annotations

import math
import sys
import types
from typing import Any
from unittest import mock

import pytest

from sitq.errors import ValidationError
from sitq.models import RetryPolicy
from sitq.payload.registry import (
    Call,
    Registry,
    TaskDefaults,
    call,
    default_registry,
    name_of,
    task,
)
from tests.unit import registry_samples as samples
from tests.unit.registry_samples import Service, Sub

HERE = "tests.unit.registry_samples"


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (samples.add, f"{HERE}:add"),
        (samples.add_async, f"{HERE}:add_async"),
        (samples.wrapped, f"{HERE}:wrapped"),
        (samples.cached, f"{HERE}:cached"),
        (samples.marked, f"{HERE}:marked"),
        (samples.context, f"{HERE}:context"),
        (Service.static, f"{HERE}:Service.static"),
        (Service.of_class, f"{HERE}:Service.of_class"),
        (Sub.of_class, f"{HERE}:Sub.of_class"),
        (Sub.static, f"{HERE}:Service.static"),
        (Sub.Inner.static, f"{HERE}:Sub.Inner.static"),
        (Service.method, f"{HERE}:Service.method"),
        (math.sqrt, "math:sqrt"),
        (print, "builtins:print"),
    ],
)
def test_a_function_is_named_by_where_it_is(func: Any, name: str) -> None:
    assert name_of(func) == name
    registry = Registry()
    added = registry.add(func)
    assert added.name == name
    assert added.func == func
    assert registry.get(name) is added


@pytest.mark.parametrize(
    "make",
    [
        mock.Mock,
        mock.MagicMock,
        mock.AsyncMock,
        lambda: mock.MagicMock(spec=samples.add),
        lambda: mock.MagicMock(wraps=samples.add),
        lambda: mock.create_autospec(samples.add),
        lambda: mock.create_autospec(samples.add_async),
    ],
)
def test_a_mock_of_a_function_is_refused_with_what_to_do_in_a_test(make: Any) -> None:
    real = samples.add
    with mock.patch.object(samples, "add", make()):
        with pytest.raises(ValidationError, match=r"^a mock \(.*mock what the function calls"):
            name_of(samples.add)
        with pytest.raises(ValidationError, match=r"add is replaced by a mock: .*Worker.drain\(\)"):
            name_of(real)
        with pytest.raises(ValidationError, match="mock"):
            Registry().add(samples.add)
    assert name_of(samples.add) == f"{HERE}:add"


@pytest.mark.parametrize(
    ("func", "text"),
    [
        (samples.anonymous, "a lambda has no name: define"),
        (samples.closure(), "is defined inside a function.*move it"),
        (samples.partial, "functools.partial has no name: define"),
        (samples.bound, "bound to an instance.*static method"),
        (samples.callable_object, "callable object of type Service: define"),
        (Service, "Service is a class: define"),
        (samples.numbers, "generator function: return a list"),
        (samples.numbers_async, "generator function: return a list"),
        (samples.first, "another object than the function given"),
        (samples.wrapped.__wrapped__, "wrapped by a decorator: use the one"),  # type: ignore[attr-defined]
        (samples.UserId, "callable object of type NewType"),
        ([].append, "bound to an instance"),
        (str.upper, "method"),
        (Service.__dict__["static"], "put @staticmethod above"),
        (Service.__dict__["of_class"], "put @classmethod above"),
        (5, "an int is not a function: give the function itself"),
        (None, "a NoneType is not a function: give the function itself"),
        ([], "a list is not a function: give the function itself"),
        (dict.fromkeys, "."),
    ],
)
def test_what_no_name_leads_to_is_refused_with_what_to_do(func: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        name_of(func)
    with pytest.raises(ValidationError, match=text):
        Registry().add(func)


def test_a_function_that_is_gone_from_its_module_is_refused() -> None:
    gone = types.FunctionType(samples.add.__code__, vars(samples), "gone")
    gone.__qualname__ = "gone"
    with pytest.raises(ValidationError, match=r"registry_samples\.gone does not exist"):
        name_of(gone)


def test_a_function_without_a_module_is_refused() -> None:
    homeless = types.FunctionType(samples.add.__code__, {}, "homeless")
    homeless.__module__ = None  # type: ignore[assignment]
    with pytest.raises(ValidationError, match="without a name"):
        name_of(homeless)


def test_adding_twice_finds_the_same() -> None:
    registry = Registry()
    assert registry.add(samples.add) is registry.add(samples.add)
    assert registry.add(Service.of_class) is registry.add(Service.of_class)
    assert registry.add(Service.of_class) is not registry.add(Sub.of_class)


def test_a_reloaded_function_replaces_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    old, old_func = registry.add(samples.add), samples.add
    new_func = types.FunctionType(old_func.__code__, vars(samples), "add")
    monkeypatch.setattr(samples, "add", new_func)
    new = registry.add(new_func)
    assert registry.get(old.name) is new
    assert new.func is new_func
    with pytest.raises(ValidationError, match="another object"):
        registry.add(old_func)


def test_a_registry_asks_its_parent_and_adds_nothing_to_it() -> None:
    parent = Registry()
    child = Registry(parent=parent)
    name = parent.add(samples.add).name
    assert child.get(name) is parent.get(name)
    other = child.add(samples.wrapped).name
    assert parent.get(other) is None


@pytest.mark.parametrize(
    "name",
    ["", "os:system", f"{HERE}:add", f"{HERE}:nope", "nope", ":", "a:b:c", "/etc/passwd:x"],
)
def test_a_name_that_was_not_added_is_not_known(name: str) -> None:
    assert Registry().get(name) is None


class Proxy:
    """Stands for nothing outside of a request, as ``flask.request`` does."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __call__(self) -> None: ...


@pytest.mark.parametrize("listed", [[], ["request"]], ids=["imported", "listed"])
@pytest.mark.parametrize("origin", ["elsewhere", "with_proxies"])
def test_a_module_may_hold_proxies(
    listed: list[str], origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("with_proxies")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Proxy, "__module__", origin)
    exec("def send(): ...", vars(module))
    vars(module).update(request=Proxy(), __all__=listed)
    registry = Registry()
    registry.add_module(module)
    assert registry.names() == {"with_proxies:send"}


def test_a_module_adds_the_static_and_class_methods_of_its_classes() -> None:
    registry = Registry()
    registry.add_module(samples)
    for name in ("static", "of_class", "marked", "marked_static"):
        found = registry.get(f"{HERE}:Service.{name}")
        assert found is not None
        assert found.func == getattr(samples.Service, name)
    assert registry.get(f"{HERE}:Service.method") is None


def test_a_module_adds_the_functions_that_it_defines() -> None:
    registry = Registry()
    registry.add_module(samples)
    found = {
        name.rpartition(":")[2]
        for name in (f"{HERE}:{attribute}" for attribute in vars(samples))
        if registry.get(name) is not None
    }
    assert found == {
        "add",
        "add_async",
        "wrapped",
        "cached",
        "marked",
        "marked_only",
        "replaced",
        "logged",
        "closure",
        "deleted",
        "context",
    }
    assert registry.get("math:floor") is None


def test_a_marked_function_is_known_with_its_options_through_what_wraps_it() -> None:
    found = default_registry.get(f"{HERE}:marked")
    assert found is not None
    assert found.func is samples.marked
    assert found.defaults == TaskDefaults(
        timeout=5.0,
        queue="mail",
        priority=1,
        result_ttl=60.0,
        retry=RetryPolicy(max_attempts=2),
    )
    assert default_registry.add(samples.marked) is found


def test_a_decorator_without_options_changes_nothing_but_that_it_is_known() -> None:
    found = default_registry.get(f"{HERE}:marked_only")
    assert found is not None
    assert found.func is samples.marked_only
    assert found.defaults == TaskDefaults()


def test_marked_methods_of_classes_are_known_as_what_the_class_makes_of_them() -> None:
    found = default_registry.get(f"{HERE}:Service.marked")
    assert found is not None
    assert found.func() == "Service"
    assert found.defaults.timeout == 7
    assert default_registry.add(Sub.marked).defaults.timeout == 7
    assert default_registry.get(f"{HERE}:Service.marked_static") is not None


def test_a_marked_function_that_its_module_does_not_keep_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry()
    registry.mark(samples.add)
    name = f"{HERE}:add"
    monkeypatch.setattr(samples, "add", samples.wrapped)
    assert registry.get(name) is None
    monkeypatch.delattr(samples, "add")
    assert registry.get(name) is None
    monkeypatch.undo()
    assert registry.get(name) is not None


def test_a_marked_function_that_became_a_generator_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry()
    registry.mark(samples.add)

    class Odd:
        __wrapped__ = samples.add

    monkeypatch.setattr(samples, "add", Odd())
    assert registry.get(f"{HERE}:add") is None


def test_marking_again_replaces_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.add(samples.add)
    new_func = types.FunctionType(samples.add.__code__, vars(samples), "add")
    registry.mark(new_func)
    monkeypatch.setattr(samples, "add", new_func)
    found = registry.get(f"{HERE}:add")
    assert found is not None
    assert found.func is new_func


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": 0}, "@task: timeout: give seconds of more than 0"),
        ({"timeout": "1"}, "@task: timeout: .*got str"),
        ({"priority": 101}, "@task: priority: "),
        ({"queue": "no blanks"}, "@task: queue: "),
        ({"result_ttl": -1}, "@task: result_ttl: "),
        ({"store_result": 1}, "@task: store_result: "),
        ({"retry": 3}, "@task: retry: "),
    ],
)
def test_an_option_out_of_its_range_is_named(options: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        task(**options)


@pytest.mark.parametrize(
    ("func", "text"),
    [
        (lambda: None, "lambda"),
        (samples.closure(), "inside a function"),
        (samples.partial, "partial"),
        (Service.__dict__["static"], "put @staticmethod above"),
        (math.sqrt, "only functions defined in Python"),
    ],
)
def test_what_cannot_be_marked_is_refused_at_once(func: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        task(func)


def test_a_call_holds_its_arguments_and_does_not_show_them() -> None:
    made = call(samples.add, 1, b=2)
    assert made == Call(samples.add, (1,), {"b": 2})
    assert "1" not in repr(made).replace(repr(samples.add), "")
    with pytest.raises(AttributeError):
        made.args = ()  # type: ignore[misc]


def test_a_marked_function_of_the_parent_is_found_without_a_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = Registry()
    parent.mark(samples.add)
    child = Registry(parent)
    child.add(samples.add_async)
    monkeypatch.delattr(Registry, "find_by_file")
    found = child.get(f"{HERE}:add")
    assert found is not None
    assert found.func is samples.add
