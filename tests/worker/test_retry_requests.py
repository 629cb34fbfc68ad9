"""`Retry` and `Fail`, alone, as subclasses, and in the groups that task groups raise."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sitq import Fail, Retry, RetryPolicy, TaskQueue, TaskStatus, current_task
from tests.worker.gate import ended, working

pytestmark = pytest.mark.anyio


class RateLimited(Retry):
    def __init__(self, who: str) -> None:
        self.who = who


class Biting(Retry):
    @property
    def delay(self) -> float:  # type: ignore[override]
        raise RuntimeError("no delay")

    def __init__(self) -> None:
        pass


class Absurd(Retry):
    delay = "soon"  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


async def retried_in_group() -> str:
    if current_task().attempt == 1:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(anyio.sleep_forever)
            inner.start_soon(_raise, Retry(delay=0))
    return "done"


async def _raise(error: Exception) -> None:
    raise error


def limited(kind: int) -> str:
    if current_task().attempt == 1:
        raise [RateLimited("api"), Biting(), Absurd()][kind]
    return "done"


async def given_up(grouped: bool) -> None:
    if not grouped:
        raise Fail("the account is closed")
    raise ExceptionGroup("", [Retry(delay=0), ExceptionGroup("", [Fail("closed"), OSError()])])


async def half_retried() -> None:
    raise ExceptionGroup("", [Retry(delay=0), OSError("disk")])


async def test_a_retry_out_of_a_task_group_is_a_retry(queue: TaskQueue, tmp_path: Path) -> None:
    async with working(tmp_path):
        result = await ended(queue, await queue.enqueue(retried_in_group))
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 2)


@pytest.mark.parametrize("kind", [0, 1, 2])
async def test_a_retry_of_a_subclass_needs_nothing_of_the_base(
    queue: TaskQueue, tmp_path: Path, kind: int
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0, retry_on=())
    async with working(tmp_path):
        result = await ended(queue, await queue.options(retry=policy).enqueue(limited, kind))
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 2)


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_task_that_asks_to_fail_is_not_tried_again(
    queue: TaskQueue, tmp_path: Path, grouped: bool
) -> None:
    policy = RetryPolicy(max_attempts=5, delay=0)
    async with working(tmp_path, retry=policy):
        result = await ended(queue, await queue.options(retry=policy).enqueue(given_up, grouped))
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
    assert result.error is not None
    assert "the account is closed" in result.error or grouped
    assert "closed" in str(result.traceback)


async def test_a_retry_beside_another_error_is_left_to_the_policy(
    queue: TaskQueue, tmp_path: Path
) -> None:
    listed = RetryPolicy(max_attempts=2, delay=0, retry_on=(OSError,))
    other = RetryPolicy(max_attempts=2, delay=0, retry_on=(KeyError,))
    async with working(tmp_path):
        for policy, attempts in ((listed, 2), (other, 1), (None, 1)):
            bound = queue if policy is None else queue.options(retry=policy)
            result = await ended(queue, await bound.enqueue(half_retried))
            assert (result.status, result.attempts) == (TaskStatus.FAILED, attempts)


class UnidentifiedImageError(OSError):
    pass


async def unidentified() -> None:
    raise UnidentifiedImageError("no image")


async def test_what_no_retry_on_lists_is_not_retried(queue: TaskQueue, tmp_path: Path) -> None:
    policy = RetryPolicy(
        max_attempts=3, delay=0, retry_on=(OSError,), no_retry_on=(UnidentifiedImageError,)
    )
    async with working(tmp_path):
        result = await ended(queue, await queue.options(retry=policy).enqueue(unidentified))
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
