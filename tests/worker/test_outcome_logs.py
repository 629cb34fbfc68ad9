"""What a worker logs: each end of an attempt with its fields, as an error tracker reads them."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sitq
from sitq import BackendBusyError, RetryPolicy, TaskQueue, TaskStatus, Worker
from sitq.backends.memory import MemoryBackend
from sitq.testing import FaultyBackend
from tests.worker.gate import GATE, add, ended, endless, fail, multiply, until, working

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
    assert (fields["error_type"], fields["duration"] >= 0) == ("ValueError", True)


@pytest.mark.parametrize("function", [add, multiply])
async def test_a_success_is_an_info_that_says_how_long_it_took(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker, function: Any
) -> None:
    async with working(tmp_path):
        task_id = await queue.enqueue(function, 1, 2)
        assert (await ended(queue, task_id)).status is TaskStatus.SUCCESS
    (record,) = tracker.of(task_id)
    assert record.levelno == logging.INFO
    name = f"tests.worker.gate:{function.__name__}"
    assert re.fullmatch(
        rf"task {task_id}: attempt 1 of {name} succeeded in \d\.\d{{3}} s", record.getMessage()
    )
    fields = vars(record)
    assert (fields["function"], fields["queue"], fields["attempt"]) == (name, "default", 1)
    assert 0 <= fields["duration"] < 60


async def test_a_success_makes_no_record_where_info_is_off(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    logging.getLogger("sitq").setLevel(logging.WARNING)
    async with working(tmp_path):
        assert (await ended(queue, await queue.enqueue(add, 1, 2))).status is TaskStatus.SUCCESS
    assert tracker.records == []


async def test_a_worker_says_that_it_has_started_and_ended(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    async with working(tmp_path, queues=("default", "mail"), tasks=[add]):
        await ended(queue, await queue.enqueue(add, 1, 2))
    first, last = tracker.records[0], tracker.records[-1]
    fields = vars(first)
    assert (first.levelno, last.levelno) == (logging.INFO, logging.INFO)
    assert re.fullmatch(
        r"worker [0-9a-f]{16} started on .+: queues default, mail, \d+ functions, "
        r"SQLiteBackend\(.*\), sitq .+",
        first.getMessage(),
    )
    assert (fields["host"], fields["pid"]) == (socket.gethostname(), os.getpid())
    assert (fields["queues"], fields["version"]) == (["default", "mail"], sitq.__version__)
    assert fields["functions"] >= 1
    assert fields["store"].startswith("SQLiteBackend(")
    assert re.fullmatch(r"worker [0-9a-f]{16} ended: 1 attempts in \d+\.\d{3} s", last.getMessage())
    assert (vars(last)["worker_id"], vars(last)["attempts"]) == (fields["worker_id"], 1)


async def test_a_worker_that_cannot_start_says_neither(tracker: Tracker) -> None:
    backend = FaultyBackend(MemoryBackend())
    backend.fail("renew", error=BackendBusyError("busy"))
    with pytest.raises(BackendBusyError):
        await Worker(backend).drain()
    assert tracker.records == []


async def test_a_store_whose_repr_raises_does_not_keep_a_worker_from_starting(
    tracker: Tracker,
) -> None:
    class Shy(MemoryBackend):
        def __repr__(self) -> str:
            raise RuntimeError("no")

    await Worker(Shy()).drain()
    assert vars(tracker.records[0])["store"].endswith("Shy")


@pytest.mark.parametrize(
    ("end", "text"), [("cancel", "was cancelled"), ("stop", "was interrupted and is handed back")]
)
async def test_an_attempt_that_was_ended_is_an_info_in_words(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker, end: str, text: str
) -> None:
    async with working(tmp_path, shutdown_timeout=0):
        task_id = await queue.enqueue(endless)
        await until(GATE.entered.is_set)
        if end == "cancel":
            await queue.cancel(task_id)
            await ended(queue, task_id)
    (record,) = tracker.of(task_id)
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith(f"of tests.worker.gate:endless {text}")
    assert vars(record)["duration"] > 0


async def test_a_retry_without_a_delay_is_at_once(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    policy = RetryPolicy(max_attempts=2, delay=0, jitter=0)
    async with working(tmp_path):
        task_id = await queue.options(retry=policy).enqueue(fail, "text")
        await ended(queue, task_id)
    first, _ = tracker.of(task_id)
    assert first.getMessage().endswith("retrying at once")
    assert (vars(first)["delay"], vars(first)["error_type"]) == (0, "ValueError")


async def test_a_record_factory_of_the_users_keeps_its_own_fields(
    queue: TaskQueue, tmp_path: Path, tracker: Tracker
) -> None:
    """The standard library refuses a field that the record has already."""

    class Record(logging.LogRecord):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.queue = "theirs"

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Record)
    try:
        async with working(tmp_path):
            task_id = await queue.enqueue(add, 1, 2)
            await ended(queue, task_id)
    finally:
        logging.setLogRecordFactory(before)
    (record,) = tracker.of(task_id)
    assert (vars(record)["queue"], vars(record)["attempt"]) == ("theirs", 1)


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
    async with working(tmp_path):
        task_id = await queue.options(timeout=0.02).enqueue(endless)
        await ended(queue, task_id)
    (record,) = tracker.of(task_id)
    assert record.exc_info is not None
    assert record.exc_info[0] is TimeoutError
