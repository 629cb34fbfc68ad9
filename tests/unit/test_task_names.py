"""Names that a function is given, names that it had before, and names that are near."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from sitq import ValidationError, Worker, task
from sitq.backends.memory import MemoryBackend
from sitq.ids import new_task_id
from sitq.models import ReservedTask, RetryPolicy
from sitq.payload.registry import Registry, default_registry
from sitq.retry import decide
from sitq.worker._outcomes import outcome_of_unknown_function
from tests.unit.queue_support import spied_queue

Load = Callable[..., types.ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Have a module of a text imported, as far as this test goes."""

    def make(name: str, text: str, file: str | None = None) -> types.ModuleType:
        module = types.ModuleType(name)
        if file is not None:
            module.__file__ = file
        monkeypatch.setitem(sys.modules, name, module)
        exec(text, vars(module))
        return module

    return make


NAMED = """
from sitq import task
@task(name="{0}.send", aliases=("old.{0}:send", "/srv/my app.py:{0}"))
def send() -> str:
    return "{0}"
"""


@pytest.mark.anyio
async def test_the_name_that_is_given_is_stored(load: Load) -> None:
    module = load("names_a", NAMED.format("a"))
    async with spied_queue() as (queue, backend, _):
        await queue.enqueue(module.send)
        assert backend.stored[0].function == "a.send"


@pytest.mark.parametrize("given", [False, True])
def test_a_function_is_found_by_all_of_its_names(load: Load, given: bool) -> None:
    module = load("names_b", NAMED.format("b"))
    registry = Registry(parent=default_registry)
    if given:
        registry.add_module(module)
    for name in ("b.send", "names_b:send", "old.b:send", "/srv/my app.py:b"):
        found = registry.get(name)
        assert found is not None, name
        assert (found.func, found.name) == (module.send, "b.send")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": ""}, "name: give 1 to 200"),
        ({"name": "two words"}, "name: give 1 to 200"),
        ({"name": "a" * 201}, "name: give 1 to 200"),
        ({"name": 7}, "got int"),
        ({"name": b"mail"}, "got bytes"),
        ({"aliases": "mail.send"}, r"aliases: give a tuple.*got str"),
        ({"aliases": 7}, "got int"),
        ({"aliases": ["a", 7]}, "aliases: give stored names.*got int"),
        ({"aliases": ["a\nb"]}, "aliases: give stored names"),
        ({"aliases": [""]}, "aliases: give stored names"),
        ({"aliases": ["a" * 1025]}, "1,024"),
    ],
)
def test_a_bad_name_is_refused(options: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        task(**options)


@pytest.mark.parametrize(
    "second",
    [
        '@task(name="c.send")\ndef other() -> None: ...',
        '@task(aliases=("c.send",))\ndef other() -> None: ...',
        '@task(name="old.c:send")\ndef other() -> None: ...',
        '@task(name="names_c:send")\ndef other() -> None: ...',
    ],
)
def test_two_functions_with_one_name_are_refused_by_name(load: Load, second: str) -> None:
    load("names_c", NAMED.format("c"))
    text = r"is claimed by names_c:send and by names_d:other: give one of them another name="
    with pytest.raises(ValidationError, match=text):
        load("names_d", f"from sitq import task\n{second}")
    found = default_registry.get("c.send")
    assert found is not None
    assert found.func() == "c"


def test_a_function_that_has_the_old_name_of_another_is_refused(load: Load) -> None:
    load("names_e", NAMED.format("e"))
    unmarked = load("old.e", "def send() -> None: ...")
    with pytest.raises(ValidationError, match=r"'old\.e:send' is claimed by names_e:send and by"):
        default_registry.add(unmarked.send)
    with pytest.raises(ValidationError, match="claimed"):
        Worker(MemoryBackend(), tasks=[unmarked])


def test_a_module_that_is_loaded_again_gives_its_names_to_its_new_functions(load: Load) -> None:
    load("names_f", NAMED.format("f"))
    assert default_registry.get("f.send") is not None
    again = load("names_f", NAMED.format("f"))
    for name in ("f.send", "names_f:send", "old.f:send"):
        found = default_registry.get(name)
        assert found is not None
        assert found.func is again.send


def test_a_file_that_is_loaded_under_two_names_has_one_function(load: Load) -> None:
    """A project may have two ways to a module; a script may be imported as well."""
    load("project.names_n", NAMED.format("n"), "/srv/project/names_n.py")
    second = load("names_n", NAMED.format("n"), "/srv/project/names_n.py")
    found = default_registry.get("n.send")
    assert found is not None
    assert found.func is second.send
    with pytest.raises(ValidationError, match="claimed"):
        load("elsewhere.names_n", NAMED.format("n"), "/srv/elsewhere/names_n.py")


def test_a_name_is_free_once_its_function_is_gone(load: Load) -> None:
    module = load("names_o", NAMED.format("o"))
    del module.send
    again = load("names_p", NAMED.format("o"))
    found = default_registry.get("o.send")
    assert found is not None
    assert found.func is again.send


CLASSES = """
from sitq import task
class Base:
    @classmethod
    @task(name="g.run")
    def run(cls) -> str:
        return cls.__name__
class Sub(Base): ...
"""


def test_an_inherited_class_method_does_not_take_the_name_of_its_base(load: Load) -> None:
    module = load("names_g", CLASSES)
    assert default_registry.add(module.Base.run).name == "g.run"
    assert default_registry.add(module.Sub.run).name == "names_g:Sub.run"
    found = default_registry.get("g.run")
    assert found is not None
    assert found.func() == "Base"


PACKAGE = """
import os
import subprocess
from names_h.mail import send, Service
from names_i import listed, marked, plain
def new() -> str:
    return "new"
old = new
__all__ = ["listed", "new"]
"""
OUTSIDE = """
from sitq import task
def listed() -> str: return "listed"
def plain() -> str: return "plain"
@task
def marked() -> str: return "marked"
"""
INSIDE = """
def send() -> str: return "send"
class Service:
    @staticmethod
    def run() -> str: return "run"
"""


def test_a_module_offers_what_it_exports_under_its_own_names_too(load: Load) -> None:
    load("names_i", OUTSIDE)
    load("names_h.mail", INSIDE)
    registry = Registry()
    registry.add_module(load("names_h", PACKAGE))
    names = {
        "names_h:send": "names_h.mail:send",
        "names_h:Service.run": "names_h.mail:Service.run",
        "names_h:listed": "names_i:listed",
        "names_h:marked": "names_i:marked",
        "names_h:old": "names_h:new",
    }
    for exported, defined in names.items():
        found = registry.get(exported)
        assert found is not None, exported
        assert found.name == defined
        assert registry.get(defined) is found


def test_what_a_module_only_imports_may_not_run(load: Load) -> None:
    load("names_i", OUTSIDE)
    load("names_h.mail", INSIDE)
    registry = Registry()
    registry.add_module(load("names_h", f"from subprocess import run\n{PACKAGE}"))
    for name in ("names_h:plain", "names_i:plain", "names_h:run", "subprocess:run"):
        assert registry.get(name) is None


def test_a_name_that_was_added_is_found_without_a_search(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Registry()
    added = parent.add(load("names_j", "def send() -> None: ...").send)

    def fail(_registry: Registry, name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(Registry, "add_marked", fail)
    monkeypatch.setattr(Registry, "find_by_file", fail)
    assert Registry(parent=parent).get("names_j:send") is added


def make_reserved(function: str) -> ReservedTask:
    return ReservedTask.model_construct(
        id=new_task_id(),
        function=function,
        queue="default",
        attempt=1,
        unknown_function_count=0,
        epoch=1,
        payload=b"",
    )


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("pkg.jobs_k:send", "jobs_k:send is known here; the task wants pkg.jobs_k:send; "),
        ("jobs_k:sned", "jobs_k:send is known here; the task wants jobs_k:sned; "),
        ("nothing.like:this", ""),
        ("x" * 1000 + ":" + "y" * 20_000, ""),
    ],
)
def test_the_warning_names_what_may_be_meant(
    load: Load, caplog: pytest.LogCaptureFixture, wanted: str, hint: str
) -> None:
    registry = Registry()
    registry.add(load("jobs_k", "def send() -> None: ...").send)
    outcome = outcome_of_unknown_function(make_reserved(wanted), registry.similar_names(wanted))
    assert outcome.kind == "miss"
    text = caplog.text
    assert hint in text
    assert ("known here" in text) == bool(hint)


ERRORS = """
class LostError(Exception): ...
"""


def test_a_class_is_known_by_what_a_module_calls_it(load: Load) -> None:
    inner = load("names_l.errors", ERRORS)
    load("names_l", "from names_l.errors import LostError as Lost")
    for name in ("names_l.errors.LostError", "names_l.errors:LostError", "names_l.Lost"):
        policy = RetryPolicy(retry_on=(name,))
        assert decide(policy, inner.LostError()).again, name
    for name in ("names_l.LostError", "errors.LostError", "builtins.int"):
        assert not decide(RetryPolicy(retry_on=(name,)), inner.LostError()).again, name


@pytest.mark.parametrize("main", ["__main__", "__mp_main__"])
def test_a_class_of_a_script_is_named_by_its_path(load: Load, main: str) -> None:
    path = "/srv/names/app.py"
    script = load(main, ERRORS, path)
    policy = RetryPolicy(retry_on=(script.LostError,))
    assert policy.retry_on == (f"{path}:LostError",)
    again = RetryPolicy.model_validate_json(policy.model_dump_json())
    old = RetryPolicy(retry_on=("__main__.LostError",))  # how it was stored before
    by_name = RetryPolicy(retry_on=("names.app.LostError",))
    for each in (policy, again, old, by_name):
        assert decide(each, script.LostError()).again
    imported = load("app", ERRORS, path)
    assert decide(policy, imported.LostError()).again
    other = load("other", ERRORS, "/srv/names/other.py")
    assert not decide(policy, other.LostError()).again
