"""What the log says of attempts: failures with their tracebacks, as an error tracker reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sitq import RetryPolicy, TaskQueue, TaskStatus
from tests.worker.gate import add, ended, fail, working

pytestmark = pytest.mark.anyio


class Tracker(logging.Handler):
    """Reads records as Sentry's handler does: the exception, its frames, the extra fields."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, task_id: str) -> list[logging.LogRecord]:
        return [record for record in self.records if vars(record).get("task_id") == task_id]


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    tracker = Tracker()
    logger = logging.getLogger("sitq")
    logger.addHandler(tracker)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield tracker
    logger.setLevel(level)
    logger.removeHandler(tracker)


async def fail_on_loop(text: str) -> None:
    raise LookupError(text)


@pytest.mark.parametrize(("function", "kind"), [(fail, ValueError), (fail_on_loop, LookupError)])
async def test_a_failure_is_an_error_with_the_exception_itself(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker, function: object, kind: type
) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(function, "text")  # type: ignore[call-overload]
        assert (await ended(queue, task_id)).status is TaskStatus.FAILED
    (record,) = tracker.of(task_id)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    found, error, trace = record.exc_info
    assert found is kind
    assert type(error) is kind
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == function.__name__  # type: ignore[attr-defined]
    assert "text" not in record.getMessage()


async def test_a_retry_is_a_warning_that_names_the_delay(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0.02, jitter=0)
    async with working(tmp_path):
        task_id = await queue.options(retry=policy).enqueue(fail, "text")
        await ended(queue, task_id)
    first, last = tracker.of(task_id)
    assert (first.levelno, last.levelno) == (logging.WARNING, logging.ERROR)
    assert first.getMessage().endswith("fail failed (ValueError); retrying in 0.02 s")
    assert last.getMessage().endswith("fail failed (ValueError)")
    assert "attempt 1 " in first.getMessage()
    assert "attempt 2 " in last.getMessage()


async def test_a_record_has_the_tasks_names_as_fields(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    async with working(tmp_path, queues=("mail",)):
        task_id = await queue.options(queue="mail").enqueue(fail, "text")
        await ended(queue, task_id)
    fields = vars(tracker.of(task_id)[0])
    assert fields["function"] == "tests.worker.gate:fail"
    assert (fields["queue"], fields["attempt"]) == ("mail", 1)
    assert len(fields["worker_id"]) == 16


async def test_a_success_is_not_worth_a_warning(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    async with working(tmp_path):
        assert (await ended(queue, await queue.enqueue(add, 1, 2))).status is TaskStatus.SUCCESS
    assert not [record for record in tracker.records if record.levelno >= logging.WARNING]


async def never_fits() -> object:
    return object()


async def test_a_result_that_cannot_be_stored_is_an_error_that_says_why(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(never_fits)
        assert (await ended(queue, task_id)).status is TaskStatus.FAILED
    (record,) = tracker.of(task_id)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is not None
    assert record.exc_info[0].__module__ == "sitq.errors"


async def test_a_task_that_runs_out_of_its_timeout_is_an_error(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    from tests.worker.gate import endless

    async with working(tmp_path):
        task_id = await queue.options(timeout=0.02).enqueue(endless)
        await ended(queue, task_id)
    (record,) = tracker.of(task_id)
    assert record.exc_info is not None
    assert record.exc_info[0] is TimeoutError
