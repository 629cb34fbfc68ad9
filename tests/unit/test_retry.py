"""When tasks are tried again, and after how long."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sitq.backends._rows import dump_policy, load_policy
from sitq.errors import ValidationError
from sitq.models import RetryPolicy
from sitq.retry import Fail, Retry, backoff, decide


def test_each_wait_is_longer_by_the_factor() -> None:
    policy = RetryPolicy(delay=2.0, factor=3.0, jitter=0.0)
    assert [backoff(policy, n, 0.5) for n in (1, 2, 3)] == [2.0, 6.0, 18.0]


def test_no_wait_is_longer_than_max_delay() -> None:
    assert backoff(RetryPolicy(delay=2.0, max_delay=5.0, jitter=0.0), 9, 0.0) == 5.0


def test_the_jitter_is_taken_off_the_wait() -> None:
    policy = RetryPolicy(delay=10.0, jitter=0.5)
    assert backoff(policy, 1, 0.0) == 10.0
    assert backoff(policy, 1, 0.5) == 7.5
    assert 5.0 <= backoff(policy, 1, math.nextafter(1.0, 0.0)) < 5.1


def test_a_wait_that_overflows_is_max_delay() -> None:
    policy = RetryPolicy(max_attempts=1000, factor=100.0, jitter=0.0)
    assert backoff(policy, 999, 0.0) == policy.max_delay


def test_no_delay_stays_no_delay_however_large_the_factor() -> None:
    assert backoff(RetryPolicy(delay=0.0, factor=100.0), 999, 0.5) == 0.0


@given(
    st.integers(1, 1000), st.floats(0, 1e6), st.floats(1, 100), st.floats(0, 1), st.floats(0, 0.999)
)
def test_every_wait_lies_between_nothing_and_max_delay(
    attempt: int, delay: float, factor: float, jitter: float, draw: float
) -> None:
    policy = RetryPolicy(delay=delay, factor=factor, jitter=jitter, max_delay=60.0)
    assert 0.0 <= backoff(policy, attempt, draw) <= 60.0


class AppError(Exception):
    """An error of the application."""


class AppTimeoutError(AppError):
    """One below it."""


ONLY_APP = RetryPolicy(retry_on=(AppError,))


@pytest.mark.parametrize(
    ("policy", "error", "wanted"),
    [
        (RetryPolicy(), ValueError(), True),
        (RetryPolicy(), KeyboardInterrupt(), False),
        (RetryPolicy(), SystemExit(), False),
        (RetryPolicy(retry_on=(BaseException,)), KeyboardInterrupt(), True),
        (RetryPolicy(retry_on=("builtins.KeyboardInterrupt",)), KeyboardInterrupt(), True),
        (RetryPolicy(retry_on=()), ValueError(), False),
        (ONLY_APP, AppError(), True),
        (ONLY_APP, AppTimeoutError(), True),
        (ONLY_APP, ValueError(), False),
        (ONLY_APP, ExceptionGroup("", [AppError(), AppTimeoutError()]), True),
        (ONLY_APP, ExceptionGroup("", [AppError(), ValueError()]), False),
        (ONLY_APP, ExceptionGroup("", [ExceptionGroup("", [AppError()]), Retry()]), True),
        (RetryPolicy(), ExceptionGroup("", [ValueError()]), True),
        (RetryPolicy(), BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()]), False),
        (RetryPolicy(retry_on=(ExceptionGroup,)), ExceptionGroup("", [ValueError()]), True),
        (RetryPolicy(retry_on=(ExceptionGroup,)), ValueError(), False),
        (RetryPolicy(no_retry_on=(AppError,)), AppTimeoutError(), False),
        (RetryPolicy(no_retry_on=(AppTimeoutError,)), AppError(), True),
        (RetryPolicy(no_retry_on=("builtins.OSError",)), FileNotFoundError(), False),
        (RetryPolicy(no_retry_on=(AppError,)), ExceptionGroup("", [OSError(), AppError()]), False),
        (RetryPolicy(no_retry_on=(ExceptionGroup,)), ExceptionGroup("", [OSError()]), False),
        (RetryPolicy(no_retry_on=(Exception,)), Retry(), True),
        (RetryPolicy(no_retry_on=(AppError,)), ExceptionGroup("", [Retry(), AppError()]), False),
        (RetryPolicy(), Fail("reason"), False),
        (RetryPolicy(retry_on=(Fail,)), Fail(), False),
        (RetryPolicy(), ExceptionGroup("", [Retry(), Fail(), OSError()]), False),
    ],
)
def test_what_is_listed_is_retried(policy: RetryPolicy, error: BaseException, wanted: bool) -> None:
    assert decide(policy, error).again is wanted


def test_asking_for_a_retry_needs_no_listing() -> None:
    assert decide(RetryPolicy(retry_on=()), Retry(delay=3)).again


def test_the_longest_delay_of_a_group_of_retries_counts() -> None:
    group = ExceptionGroup("", [Retry(2), ExceptionGroup("", [Retry(), Retry(5)])])
    assert decide(None, group) == (True, True, 5.0)
    assert decide(None, Retry()) == (True, True, None)
    assert decide(None, ValueError()) == (False, False, None)


def test_a_policy_is_stored_as_before_where_it_has_nothing_new() -> None:
    """An older version reads it, and what an older version has stored is read."""
    assert "no_retry_on" not in dump_policy(RetryPolicy())
    assert load_policy(dump_policy(RetryPolicy())).no_retry_on == ()
    policy = RetryPolicy(no_retry_on=(AppError, "builtins.OSError"))
    assert load_policy(dump_policy(policy)) == policy


@pytest.mark.parametrize("field", ["retry_on", "no_retry_on"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("ValueError",), r"0: .*'builtins\.ValueError' say \(got str\)"),
        ((OSError, "AppError"), r"1: .*'package\.module\.Class' say \(got str\)"),
        (("",), r"0: .*'package\.module\.Class' say"),
        (("print",), r"0: .*'package\.module\.Class' say"),
        ((5,), r"0: give exception classes, or their names with the module \(got int\)$"),
        (ValueError, r": give a tuple of exception classes, \(ValueError,\) say \(got type\)$"),
        ("builtins.ValueError", r": give a tuple .*\(got str\)$"),
    ],
)
def test_exceptions_that_could_never_match_are_refused(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=f"^RetryPolicy: {field}.?{text}") as caught:
        RetryPolicy(**{field: value})
    assert "; " not in str(caught.value)


def test_a_stored_policy_with_a_name_that_matches_nothing_is_read() -> None:
    stored = '{"max_attempts":7,"retry_on":["ValueError","a.B"],"no_retry_on":["KeyError"]}'
    assert load_policy(stored) == RetryPolicy(max_attempts=7, retry_on=("a.B",))
    for text in ("[1]", "5", '{"retry_on": 5}', '{"retry_on": [5]}', '{"more": 1}', "{"):
        with pytest.raises(ValueError, match=r"\w"):
            load_policy(text)


def test_a_retry_carries_its_delay() -> None:
    assert Retry().delay is None
    assert Retry(delay=1.5).delay == 1.5
    assert Retry(delay=0).delay == 0


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, True, "1"])
def test_a_delay_that_is_no_duration_is_refused(delay: float) -> None:
    with pytest.raises(ValidationError, match="Retry: delay: give seconds from 0"):
        Retry(delay=delay)
