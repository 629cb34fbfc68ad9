"""What is enqueued is checked first and stored whole, or not at all."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import anyio
import pytest
from anyio.lowlevel import checkpoint
from typing_extensions import Unpack

from sitq import (
    Call,
    SerializationError,
    SQLiteBackend,
    TaskId,
    TaskQueue,
    ValidationError,
    call,
)
from tests.unit.queue_support import SpyBackend, add, arguments, greet, remind, spied_queue

pytestmark = pytest.mark.anyio

LATER = datetime(2031, 5, 6, tzinfo=UTC)


async def test_async_and_plain_functions_get_ids_in_the_order_of_their_enqueuing() -> None:
    async with spied_queue() as (queue, backend, _):
        first = await queue.enqueue(add, 1, b=2)
        second = await queue.enqueue(greet, "you")
        assert [task.id for task in backend.stored] == [first, second]
    assert isinstance(first, TaskId)
    assert first < second


async def test_the_stored_arguments_are_those_of_the_call() -> None:
    async with spied_queue() as (queue, backend, _):
        await queue.enqueue(add, 1, b=2)
        assert arguments(backend.stored[0]) == {"a": 1, "b": 2}


BAD_CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any], type[Exception]]] = [
    (add, ("one", 2), {}, ValidationError),
    (add, (1,), {}, ValidationError),
    (add, (1, 2, 3), {}, ValidationError),
    (add, (1, 2), {"c": 3}, ValidationError),
    (lambda: None, (), {}, ValidationError),
    ("add", (1, 2), {}, ValidationError),
    (None, (), {}, ValidationError),
    (greet, ("x" * 2_000_000,), {}, SerializationError),
]


@pytest.mark.parametrize(("func", "args", "kwargs", "kind"), BAD_CALLS)
async def test_a_bad_call_is_refused_and_nothing_is_stored(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: type[Exception]
) -> None:
    async with spied_queue() as (queue, backend, _):
        with pytest.raises(kind):
            await queue.enqueue(func, *args, **kwargs)
        with pytest.raises(kind):
            await queue.options(priority=1).enqueue(func, *args, **kwargs)
        with pytest.raises(kind):
            await queue.enqueue_many([call(add, 1, 2), Call(func, args, kwargs)])
        assert backend.stored == []


async def test_a_called_async_function_is_refused_and_leaves_no_warning() -> None:
    async with spied_queue() as (queue, _, _):
        coroutine: Any = greet("you")
        with pytest.raises(ValidationError, match="the function and its arguments apart"):
            await queue.enqueue(coroutine)


async def test_eta_is_an_option_and_is_not_handed_to_the_function() -> None:
    async with spied_queue() as (queue, backend, _):
        await queue.enqueue(add, 1, 2, eta=LATER)
        await queue.enqueue(add, 1, 2, eta=None)
        assert [task.eta for task in backend.stored] == [LATER, None]
        assert arguments(backend.stored[0]) == {"a": 1, "b": 2}


async def test_a_naive_eta_is_refused_and_nothing_is_stored() -> None:
    async with spied_queue() as (queue, backend, _):
        with pytest.raises(ValidationError, match=r"eta: .*naive.*\(got datetime\)"):
            await queue.enqueue(add, 1, 2, eta=datetime(2031, 1, 1))
        assert backend.stored == []


async def test_an_eta_for_a_function_with_such_a_parameter_is_refused_with_the_way_out() -> None:
    async with spied_queue() as (queue, backend, _):
        for eta in (LATER, None):
            with pytest.raises(ValidationError, match=r"queue\.options\(eta=\.\.\.\)\.enqueue"):
                await queue.enqueue(remind, "tea", eta=eta)
        assert backend.stored == []
        await queue.options(eta=LATER).enqueue(remind, "tea", eta="soon")
        await queue.enqueue(remind, "tea", "soon")
        assert backend.stored[0].eta == LATER
        assert arguments(backend.stored[0]) == {"text": "tea", "eta": "soon"}


class Reminder(TypedDict, total=False):
    text: str
    eta: str


def remind_by_key(**reminder: Unpack[Reminder]) -> None:
    pass


async def test_an_eta_for_a_function_with_such_a_key_is_refused_with_the_way_out() -> None:
    async with spied_queue() as (queue, backend, _):
        with pytest.raises(ValidationError, match=r"queue\.options\(eta=\.\.\.\)\.enqueue"):
            await queue.enqueue(remind_by_key, eta=LATER)
        assert backend.stored == []
        await queue.options(eta=LATER).enqueue(remind_by_key, eta="soon")
        assert arguments(backend.stored[0]) == {"reminder": {"eta": "soon"}}


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"delay": 5}, r"queue\.options\(delay=5\)\.enqueue"),
        ({"delay": 0.5, "unique_key": "secret"}, r"options\(delay=0\.5, unique_key=\.\.\.\)"),
        ({"priority": 3}, r"options\(priority=3\)"),
        ({"retry": None, "b": 2}, r"options\(retry=\.\.\.\)"),
    ],
)
async def test_an_option_given_as_an_argument_is_refused_with_where_it_goes(
    kwargs: dict[str, Any], text: str
) -> None:
    async with spied_queue() as (queue, backend, _):
        methods: list[Any] = [queue.enqueue, queue.options(priority=1).enqueue]
        for enqueue in methods:
            with pytest.raises(ValidationError, match=rf"^add\(\): .*{text}") as caught:
                await enqueue(add, 1, **kwargs)
            assert "secret" not in str(caught.value)
        with pytest.raises(ValidationError, match=rf"calls\[0\]: add\(\): .*{text}"):
            await queue.enqueue_many([Call(add, (1,), kwargs)])
        with pytest.raises(ValidationError, match=r"options\(eta=\.\.\.\)"):
            await methods[1](add, 1, 2, eta=LATER)
        assert backend.stored == []


async def test_a_parameter_that_is_called_like_an_option_is_one_of_the_functions_own() -> None:
    eta: Any = 1
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match="parameter 'eta'") as caught:
            await queue.options(priority=1).enqueue(remind, "tea", eta=eta)
    assert "options" not in str(caught.value)


async def test_a_batch_comes_back_in_order() -> None:
    async with spied_queue() as (queue, backend, _):
        ids = await queue.enqueue_many(call(add, n, n) for n in range(450))
        assert ids == [task.id for task in backend.stored]
        stored = [arguments(task) for task in backend.stored]
    assert stored == [{"a": n, "b": n} for n in range(450)]


async def test_an_empty_batch_is_fine() -> None:
    async with spied_queue() as (queue, backend, _):
        assert await queue.enqueue_many([]) == []
        assert backend.stored == []


async def test_an_error_in_a_batch_says_which_call_it_was() -> None:
    bad: Any = "three"
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match=r"calls\[2\]: "):
            await queue.enqueue_many([call(add, 1, 2), call(add, 1, 2), call(add, 1, bad)])
        with pytest.raises(SerializationError, match=r"calls\[1\]: "):
            await queue.enqueue_many([call(greet, "a"), call(greet, "x" * 2_000_000)])


@pytest.mark.parametrize("calls", [add, 3, None, call(add, 1, 2)])
async def test_what_is_no_iterable_of_calls_is_refused(calls: Any) -> None:
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match="calls: give an iterable of call"):
            await queue.enqueue_many(calls)


async def test_what_is_no_call_within_a_batch_is_refused() -> None:
    functions: Any = [add]
    async with spied_queue() as (queue, _, _):
        with pytest.raises(ValidationError, match=r"calls\[0\]: give call\(func.*got function"):
            await queue.enqueue_many(functions)


async def test_encoding_a_long_batch_lets_others_have_their_turn() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with spied_queue() as (queue, _, _):
        await queue.enqueue(add, 0, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(count)
            before = turns
            await queue.enqueue_many([call(add, 1, 2)] * 2000)
            assert turns - before >= 10
            group.cancel_scope.cancel()


async def test_the_id_of_the_holder_comes_back_for_a_unique_key() -> None:
    async with spied_queue() as (queue, backend, _):
        bound = queue.options(unique_key="report")
        first = await bound.enqueue(add, 1, 2)
        assert await bound.enqueue(add, 3, 4) == first
        assert await queue.cancel(first)
        assert await bound.enqueue(add, 3, 4) != first
        assert len(backend.stored) == 3


async def test_arguments_are_in_no_repr() -> None:
    async with spied_queue() as (queue, backend, _):
        await queue.enqueue(greet, "secret-name")
        texts = [repr(queue), repr(queue.options()), repr(backend.stored[0])]
    assert "secret" not in "".join(texts)


async def test_five_hundred_callers_at_once_all_get_ids_of_their_own(tmp_path: Any) -> None:
    ids: set[str] = set()
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:

        async def one(n: int) -> None:
            ids.add(await queue.enqueue(add, n, n))

        async with anyio.create_task_group() as group:
            for n in range(500):
                group.start_soon(one, n)
        infos = [await queue.get_task(task_id) for task_id in list(ids)[:3]]
    assert len(ids) == 500
    assert {info.status.value for info in infos} == {"pending"}


async def test_callers_cancelled_within_enqueue_leave_a_working_queue(tmp_path: Any) -> None:
    draw = random.Random(5)
    backend = SQLiteBackend(tmp_path / "q.db")
    async with TaskQueue(backend) as queue:

        async def one(turns: int) -> None:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_after, scope, turns)
                    await queue.enqueue(add, 1, 2)
                    group.cancel_scope.cancel()

        async def cancel_after(scope: anyio.CancelScope, turns: int) -> None:
            for _ in range(turns):
                await checkpoint()
            scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(one, draw.randrange(12))
        task_id = await queue.enqueue(add, 1, 2)
        assert (await queue.get_task(task_id)).status == "pending"
    # No lock is held: a second connection writes at once.
    async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as other:
        assert await other.options(delay=timedelta(days=1)).enqueue(add, 1, 2)


async def test_a_task_is_refused_before_the_store_is_opened() -> None:
    backend = SpyBackend()
    queue = TaskQueue(backend)
    with pytest.raises(ValidationError):
        await queue.enqueue(add, "one", 2)  # type: ignore[call-overload]
    assert backend.opened == 0
