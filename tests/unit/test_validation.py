"""Queue names, keys, seconds and priorities have one rule and one wording, however they come."""

from __future__ import annotations

import math
from typing import Any

import pydantic
import pytest

from sitq import Retry, RetryPolicy, Task, TaskQueue, ValidationError, Worker, task
from sitq._validation import describe
from sitq.backends.memory import MemoryBackend
from sitq.ids import new_task_id
from sitq.payload.registry import Registry

QUEUE = "give 1 to 128 characters of A-Z a-z 0-9 _ . : / -, as str"
KEY = "give 1 to 256 characters of text, no control characters, as str"
SECONDS = "give seconds from 0 up to ten years, as int or float"
POSITIVE = "give seconds of more than 0, up to ten years, as int or float"
PRIORITY = "give an int from -100 to 100"
RETRY = "give a RetryPolicy, such as RetryPolicy(max_attempts=3)"

REFUSED: list[tuple[str, Any, str]] = [
    ("queue", "no blanks", f"queue: {QUEUE} (got str)"),
    ("queue", "q" * 129, f"queue: {QUEUE} (got str)"),
    ("queue", "mail\n", f"queue: {QUEUE} (got str)"),
    ("queue", 5, f"queue: {QUEUE} (got int)"),
    ("priority", 101, f"priority: {PRIORITY} (got int)"),
    ("priority", True, f"priority: {PRIORITY} (got bool)"),
    ("priority", 10**400, f"priority: {PRIORITY} (got int)"),
    ("timeout", 0, f"timeout: {POSITIVE} (got int)"),
    ("timeout", math.nan, f"timeout: {POSITIVE} (got float)"),
    ("timeout", "1", f"timeout: {POSITIVE} (got str)"),
    ("result_ttl", -1, f"result_ttl: {SECONDS} (got int)"),
    ("result_ttl", 10**400, f"result_ttl: {SECONDS} (got int)"),
    ("result_ttl", True, f"result_ttl: {SECONDS} (got bool)"),
]
REFUSED_KEYS: list[tuple[str, Any, str]] = [
    ("unique_key", "a\0b", f"unique_key: {KEY} (got str)"),
    ("unique_key", "\ud800", f"unique_key: {KEY} (got str)"),
    ("unique_key", b"key", f"unique_key: {KEY} (got bytes)"),
]


@pytest.mark.parametrize(
    ("value", "kind"), [(3, "int"), ({"max_attempts": 3}, "dict"), (RetryPolicy, "ModelMetaclass")]
)
def test_a_retry_policy_is_refused_with_one_wording(value: Any, kind: str) -> None:
    backend = MemoryBackend()
    for prefix, give in (
        ("@task: ", lambda: task(retry=value)),
        ("Worker: ", lambda: Worker(backend, retry=value)),
        ("", lambda: TaskQueue(backend).options(retry=value)),
    ):
        with pytest.raises(ValidationError) as caught:
            give()
        assert str(caught.value) == f"{prefix}retry: {RETRY} (got {kind})"


@pytest.mark.parametrize(("name", "value", "text"), REFUSED)
def test_the_decorator_refuses_by_the_common_rule(name: str, value: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task(**{name: value})
    assert str(caught.value) == f"@task: {text}"


@pytest.mark.parametrize(("name", "value", "text"), [*REFUSED, *REFUSED_KEYS])
def test_options_are_refused_by_the_common_rule(name: str, value: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskQueue(MemoryBackend()).options(**{name: value})
    assert str(caught.value) == text


@pytest.mark.parametrize(("name", "value", "text"), [*REFUSED, *REFUSED_KEYS])
def test_models_refuse_by_the_common_rule(name: str, value: Any, text: str) -> None:
    fields: dict[str, Any] = {"id": new_task_id(), "function": "m:f", "payload": b"", name: value}
    with pytest.raises(pydantic.ValidationError) as caught:
        Task(**fields)
    assert describe(caught.value) == text


@pytest.mark.anyio
@pytest.mark.parametrize("value", [-1, math.inf, True, "1"])
async def test_waits_are_refused_by_the_common_rule(value: Any) -> None:
    text = f"timeout: {SECONDS} (got {type(value).__name__})"
    async with TaskQueue(MemoryBackend()) as queue:
        with pytest.raises(ValidationError) as caught:
            await queue.get_result(new_task_id(), timeout=value)
        assert str(caught.value) == text
        with pytest.raises(ValidationError, match=f"older_than: {SECONDS}"):
            await queue.prune(value)
    with pytest.raises(ValidationError, match=f"Retry: delay: {SECONDS}"):
        Retry(delay=value)
    with pytest.raises(ValidationError, match=f"delay: {SECONDS}.*; a timedelta is accepted too"):
        TaskQueue(MemoryBackend()).options(delay=value)


def keep(policy: RetryPolicy) -> RetryPolicy:
    return policy


def test_a_model_with_such_fields_is_an_argument_as_any_other() -> None:
    from sitq import MsgpackSerializer

    function, serializer = Registry().add(keep), MsgpackSerializer()
    policy = RetryPolicy(delay=2.5, max_attempts=7)
    payload = function.dump_arguments(serializer, (policy,), {})
    assert function.load_arguments(serializer, payload) == ((policy,), {})
