"""How the arguments of a task's function are bound, written and read."""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import itertools
import math
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    NotRequired,
    ParamSpec,
    Required,
    TypedDict,
    TypeVar,
    Unpack,
)

import pytest
import typing_extensions

from sitq.errors import SerializationError, ValidationError
from sitq.models import RetryPolicy
from sitq.payload._function_signatures import Signature
from sitq.payload.functions import TaskDefaults, TaskFunction
from sitq.payload.serialization import MsgpackSerializer
from tests.unit.function_samples import User

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers

serializer = MsgpackSerializer()
P = ParamSpec("P")
R = TypeVar("R")


def add(a: int, b: int = 2) -> int:
    return a + b


async def greet(user: User, /, *names: str, loud: bool = False, **more: int) -> str:
    return ""


def bare(a, b=(), *rest, c=None, **more):  # type: ignore[no-untyped-def]
    return a


def needs_keyword(*, key: int) -> None: ...


def hidden(a: OnlyForCheckers, b: int = 0) -> OnlyForCheckers:
    return a


def nested(a: list[OnlyForCheckers]) -> None: ...


def nothing() -> None: ...


def by_place(a, /, b, c=3, **more):  # type: ignore[no-untyped-def]
    return a


def by_name(a, b, c=3, *, d=4):  # type: ignore[no-untyped-def]
    return a


class Named(TypedDict):
    x: int


class Profile(Named, total=False):
    user: User
    note: Required[str]
    age: NotRequired[int]


class Hidden(TypedDict):
    x: OnlyForCheckers


def unpacked(**named: Unpack[Named]) -> None: ...


def unpacks_models(a: int, **named: Unpack[Profile]) -> None: ...


def unpacks_more(**named: typing_extensions.Unpack[Profile]) -> None: ...


def unpacks_hidden(**named: Unpack[Hidden]) -> None: ...


def passed_on(*args: P.args, **kwargs: P.kwargs) -> None: ...  # type: ignore[valid-type]


def logged(func: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return func(*args, **kwargs)

    return wrapper


@logged
def wrapped(a: User) -> User:
    return a


@logged
async def wrapped_async(a: int) -> int:
    return a


def starts(a: int) -> Awaitable[int]:
    return wrapped_async(a)


@functools.wraps(wrapped_async)
def declared(a: int) -> Coroutine[Any, Any, int]:
    return asyncio.sleep(0, a)


declared.__annotations__["return"] = Coroutine[Any, Any, int]


def task(func: Callable[..., Any]) -> TaskFunction[Any]:
    return TaskFunction(f"m:{func.__name__}", func)


def through(
    func: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    function = task(func)
    payload = function.dump_arguments(serializer, args, kwargs)
    return function.load_arguments(serializer, payload)


def stored(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return serializer.loads(task(func).dump_arguments(serializer, args, kwargs))


def test_the_payload_is_a_list_of_positional_and_a_dict_of_keyword_arguments() -> None:
    assert stored(add, 1, 3) == [[1, 3], {}]
    assert stored(nothing) == [[], {}]
    assert stored(greet, User(name="x"), loud=True)[1] == {"loud": True}


def test_defaults_are_left_to_the_worker() -> None:
    assert stored(add, 1) == [[1], {}]


def test_arguments_given_by_name_travel_by_name_and_those_by_position_by_position() -> None:
    assert stored(add, b=1, a=2) == [[], {"b": 1, "a": 2}]
    assert stored(add, 2, b=1) == [[2], {"b": 1}]
    assert through(add, b=1, a=2) == ((), {"b": 1, "a": 2})
    assert through(add, a=2) == ((), {"a": 2})
    assert through(needs_keyword, key=1) == ((), {"key": 1})


@pytest.mark.parametrize("func", [add, by_place, by_name, bare])
def test_a_call_is_stored_if_and_only_if_python_would_bind_it(func: Callable[..., Any]) -> None:
    names = ("a", "b", "c", "d", "more", "")
    for count, size in itertools.product(range(4), range(4)):
        args = tuple(range(count))
        for chosen in itertools.permutations(names, size):
            kwargs = {name: place for place, name in enumerate(chosen)}
            try:
                inspect.signature(func).bind(*args, **kwargs)
            except TypeError as error:
                with pytest.raises(ValidationError, match=re.escape(str(error))):
                    stored(func, *args, **kwargs)
            else:
                assert stored(func, *args, **kwargs) == [list(args), kwargs]
                assert through(func, *args, **kwargs) == (args, kwargs)


@pytest.mark.parametrize("older", [add, by_place, by_name, bare])
@pytest.mark.parametrize("newer", [add, by_place, by_name, bare])
def test_a_worker_binds_what_another_version_stored_as_python_binds_it(
    older: Callable[..., Any], newer: Callable[..., Any]
) -> None:
    for count, size in itertools.product(range(4), range(4)):
        args = tuple(range(count))
        for chosen in itertools.permutations(("a", "b", "c", "d"), size):
            kwargs = {name: place for place, name in enumerate(chosen)}
            try:
                payload = task(older).dump_arguments(serializer, args, kwargs)
            except ValidationError:
                continue
            try:
                inspect.signature(newer).bind(*args, **kwargs)
            except TypeError as error:
                with pytest.raises(ValidationError, match=re.escape(str(error))):
                    task(newer).load_arguments(serializer, payload)
            else:
                assert task(newer).load_arguments(serializer, payload) == (args, kwargs)


def before_deploy(to: str, html: bool = False) -> None: ...
def reordered(html: bool = False, to: str = "") -> None: ...
def inserted(to: str, urgent: bool = False, html: bool = False) -> None: ...
def keyword_only(*, to: str, html: bool = True) -> None: ...
def gathered(**options: Any) -> None: ...
def positional_rest(to: str, *names: str, html: bool = False) -> None: ...


@pytest.mark.parametrize(
    "after_deploy",
    [before_deploy, reordered, inserted, keyword_only, gathered, positional_rest],
)
def test_a_keyword_reaches_the_parameter_of_its_name_whatever_a_deploy_did_to_the_signature(
    after_deploy: Callable[..., Any],
) -> None:
    payload = task(before_deploy).dump_arguments(serializer, (), {"html": True, "to": "ada"})
    args, kwargs = task(after_deploy).load_arguments(serializer, payload)
    bound = inspect.signature(after_deploy).bind(*args, **kwargs)
    named = bound.arguments.get("options", bound.arguments)
    assert named == {"html": True, "to": "ada"}


def test_a_default_that_a_deploy_changes_counts_for_tasks_stored_before_it() -> None:
    payload = task(before_deploy).dump_arguments(serializer, ("ada",), {})
    assert task(keyword_only).load_arguments(serializer, serializer.dumps([[], {"to": "ada"}])) == (
        (),
        {"to": "ada"},
    )
    assert task(inserted).load_arguments(serializer, payload) == (("ada",), {})


def test_a_payload_of_an_older_sitq_which_turned_names_into_positions_is_read() -> None:
    old = serializer.dumps([["ada", True], {}])
    assert task(before_deploy).load_arguments(serializer, old) == (("ada", True), {})


class Base:
    @classmethod
    def make(cls, size: int, *, deep: bool = False) -> None: ...

    @staticmethod
    def plain(size: int) -> None: ...


def test_a_class_method_is_stored_without_its_class() -> None:
    assert stored(Base.make, size=1, deep=True) == [[], {"size": 1, "deep": True}]
    assert stored(Base.plain, 1) == [[1], {}]


def test_a_mapping_that_makes_up_what_is_missing_is_not_asked_to() -> None:
    made_up = collections.defaultdict(int, c=1)
    with pytest.raises(ValidationError, match="missing a required argument: 'b'"):
        task(by_name).dump_arguments(serializer, (1,), made_up)


def test_each_extra_argument_is_read_by_the_annotation_of_its_parameter() -> None:
    ann = User(name="Ann")
    assert through(greet, ann, "b", "c", loud=True, x=1) == (
        (ann, "b", "c"),
        {"loud": True, "x": 1},
    )
    with pytest.raises(ValidationError, match="parameter 'names': .*got int"):
        through(greet, ann, "b", 1)
    with pytest.raises(ValidationError, match="parameter 'more': .*got str"):
        through(greet, ann, x="1")


def test_a_function_without_annotations_takes_plain_values() -> None:
    assert through(bare, (1,), {2}, b"x", None, c=[1.5], d={"k": (1,)}) == (
        ((1,), {2}, b"x", None),
        {"c": [1.5], "d": {"k": (1,)}},
    )
    with pytest.raises(SerializationError, match="parameter 'rest': .*User"):
        through(bare, 1, 2, User(name="x"))


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
        ((1,), {"c": 1}, "got an unexpected keyword argument 'c'"),
        (("one",), {}, r"parameter 'a': Input should be a valid integer \(got str\)"),
        ((1,), {"b": None}, "parameter 'b': .*got NoneType"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValidationError, match=rf"^add\(\): {text}"):
        through(add, *args, **kwargs)


def test_a_missing_keyword_is_named() -> None:
    with pytest.raises(ValidationError, match="'key'"):
        through(needs_keyword)


def test_the_argument_that_is_too_large_is_named() -> None:
    with pytest.raises(SerializationError, match=r"^bare\(\): parameter 'b': .*2000005 bytes"):
        through(bare, 1, "x" * 2_000_000)


def test_arguments_too_large_together_say_so() -> None:
    with pytest.raises(SerializationError, match=r"bare\(\): the arguments together: .*over"):
        through(bare, "x" * 600_000, "x" * 600_000)


def test_a_name_that_only_type_checkers_see_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValidationError, match=r"hidden\(\): parameter 'a': .*OnlyForCheckers.*TYPE_CHECKING"
    ):
        through(hidden, 1)
    with pytest.raises(ValidationError, match="parameter 'a': .*OnlyForCheckers"):
        through(nested, [])
    with pytest.raises(ValidationError, match="the return value: .*OnlyForCheckers"):
        task(hidden).dump_result(serializer, 1)


def test_what_a_wrapper_wraps_says_what_fits() -> None:
    ann = User(name="Ann")
    assert through(wrapped, ann) == ((ann,), {})
    with pytest.raises(ValidationError, match="parameter 'a'"):
        through(wrapped, 1)


@pytest.mark.parametrize("func", [unpacks_models, unpacks_more])
def test_the_keywords_of_an_unpacked_typed_dict_are_checked_and_rebuilt_key_by_key(
    func: Callable[..., Any],
) -> None:
    args = (1,) if func is unpacks_models else ()
    ann = User(name="Ann")
    given: dict[str, Any] = {"x": 1, "note": "n", "user": ann}
    assert through(func, *args, **given) == (args, given)
    assert through(func, *args, x=1, note="n", age=3) == (args, {"x": 1, "note": "n", "age": 3})
    refused: list[tuple[dict[str, Any], str]] = [
        ({"x": 1, "note": "n", "user": {"name": "Ann"}}, "parameter 'user': .*a dict would arrive"),
        ({"x": "1", "note": "n"}, "parameter 'x': .*got str"),
        ({"x": 1, "note": "n", "z": 1}, "got an unexpected keyword argument 'z'"),
        ({"x": 1}, "missing a required .*argument: 'note'"),
        ({"note": "n"}, "missing a required .*argument: 'x'"),
    ]
    for wrong, text in refused:
        with pytest.raises(ValidationError, match=text):
            stored(func, *args, **wrong)


def test_an_unpacked_typed_dict_whose_types_are_unknown_at_run_time_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"unpacks_hidden\(\): parameter 'named': .*TYPE_CHE"):
        stored(unpacks_hidden, x=1)


def test_what_no_annotation_of_one_value_can_say_takes_plain_values() -> None:
    assert through(passed_on, (1,), x={2}) == (((1,),), {"x": {2}})
    with pytest.raises(SerializationError, match="parameter 'kwargs': .*User"):
        through(passed_on, x=User(name="x"))


def test_builtin_functions_take_plain_values() -> None:
    assert through(math.sqrt, 2.0) == ((2.0,), {})
    with pytest.raises(ValidationError, match="missing a required argument"):
        through(math.sqrt)


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"max\(\): Python finds no signature"):
        through(max, 1)


def test_coroutine_functions_are_recognised_and_a_plain_wrapper_is_none_of_them() -> None:
    assert [task(func).is_async for func in (add, greet, wrapped, wrapped_async, declared)] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert not task(starts).is_async


def test_what_a_plain_function_gives_to_be_awaited_is_of_the_type_behind_it() -> None:
    for function in (task(starts), task(declared)):
        assert function.load_result(serializer, function.dump_result(serializer, 3)) == 3
        with pytest.raises(ValidationError, match="the return value: Input should be a valid int"):
            function.dump_result(serializer, "3")


def test_the_result_of_an_awaitable_is_what_travels() -> None:
    function = task(declared)
    assert function.load_result(serializer, function.dump_result(serializer, 1)) == 1
    with pytest.raises(ValidationError, match="the return value: .*got str"):
        function.dump_result(serializer, "1")


def test_results_are_checked_and_read_by_the_return_annotation() -> None:
    function = task(wrapped)
    ann = User(name="Ann")
    assert function.load_result(serializer, function.dump_result(serializer, ann)) == ann
    with pytest.raises(ValidationError, match=r"add\(\): the return value: .*got str"):
        task(add).dump_result(serializer, "1")
    with pytest.raises(ValidationError, match="got int"):
        task(nothing).dump_result(serializer, 1)
    with pytest.raises(SerializationError, match=r"bare\(\): the return value: .*object"):
        task(bare).dump_result(serializer, object())
    with pytest.raises(SerializationError, match="malformed"):
        task(add).load_result(serializer, b"\xc1")


@pytest.mark.parametrize(
    "envelope",
    [None, 1, [], [[]], [[], {}, 1], [{}, []], [(), {}], [[], {1: 2}], {"a": 1}],
)
def test_a_payload_that_is_no_arguments_is_refused(envelope: Any) -> None:
    with pytest.raises(SerializationError, match="holds no arguments|not a str"):
        task(add).load_arguments(serializer, serializer.dumps(envelope))


@pytest.mark.parametrize(
    "envelope", [[[], {}], [[1, 2, 3], {}], [[1], {"z": 1}], [[1], {"a": 1}], [[], {"self": 1}]]
)
def test_stored_arguments_that_fit_no_more_are_refused(envelope: Any) -> None:
    with pytest.raises(ValidationError, match="do not fit its signature"):
        task(add).load_arguments(serializer, serializer.dumps(envelope))


def test_stored_values_that_fit_no_more_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"add\(\): parameter 'b': .*got list"):
        task(add).load_arguments(serializer, serializer.dumps([[1, []], {}]))


def test_a_task_function_shows_its_name_only() -> None:
    assert repr(task(add)) == "TaskFunction('m:add')"
    assert task(add).defaults == TaskDefaults()


def test_defaults_hold_the_options_given() -> None:
    policy = RetryPolicy(max_attempts=5)
    function = TaskFunction("m:add", add, TaskDefaults(retry=policy, priority=3))
    assert function.defaults.retry == policy
    assert function.defaults.priority == 3
    assert function.defaults.queue is None


def test_of_the_calls_that_fit_a_signature_a_bounded_number_is_kept() -> None:
    def any_names(*_values: int, **_named: int) -> None: ...

    signature = Signature(any_names, "any_names()")
    for number in range(300):
        codecs, named = signature.codecs((0, f"n{number}"), (), {f"n{number}": 1})
        assert (codecs, [*named]) == ([], [f"n{number}"])
        assert len(signature.codecs(200, (1,) * 200, {})[0]) == 200
    assert len(signature.shapes) == 100
    assert 200 not in signature.shapes
